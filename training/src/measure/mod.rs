//! Measuring what was trained: fronts, the choice of β and α, and the report.

pub mod aggregate;
pub mod answers;
pub mod bootstrap;
pub mod checks;
pub mod compare;
pub mod criterion;
pub mod error;
pub mod evaluate;
pub mod front;
pub mod mauve;
pub mod methods;
pub mod plot;
pub mod points;
pub mod reference;
pub mod regime;
pub mod report;
pub mod results;
pub mod serve;
pub mod server;
pub mod settings;
pub mod source;
pub mod summary;
pub mod sweep;
