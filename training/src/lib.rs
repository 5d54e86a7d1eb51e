//! Multi-objective reinforcement learning that makes the backbones of a soup, and the measuring of
//! the front that they span.

pub mod checkpoint;
pub mod draw;
pub mod metrics;
pub mod optimizer;
pub mod rl;
