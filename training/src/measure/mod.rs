//! Measuring what was trained: fronts, the choice of β and α, and the report.

pub mod front;
pub mod plot;
pub mod report;
pub mod results;
pub mod select;
