//! Measuring what was trained: fronts, the choice of β and α, and the report.

pub mod answers;
pub mod criterion;
pub mod evaluate;
pub mod front;
pub mod plot;
pub mod report;
pub mod results;
pub mod summary;
