//! Multi-objective reinforcement learning that makes the backbones of a soup, and the measuring of
//! the front that they span.
//!
//! A run: prompts ([`data`]) → rollout → K scores of a response ([`rewards`]) → weights of the
//! objectives ([`rl::balance`]) → advantages ([`rl::advantage`]) → policy update ([`rl::ppo`],
//! [`rl::remax`]) → checkpoint → sweep over preferences → front and report ([`measure`]).

pub mod aim;
pub mod autograd;
pub mod checkpoint;
pub mod client;
pub mod config;
pub mod data;
pub mod draw;
pub mod engines;
pub mod error;
pub mod estimate;
pub mod export;
pub mod inputs;
mod judge;
pub mod layout;
pub mod measure;
pub mod metrics;
pub mod optimizer;
pub mod precision;
pub mod rewards;
pub mod ric;
pub mod rl;
pub mod run;
pub mod select;
pub mod service;
pub mod setup;
pub mod sft;
pub mod share;
pub mod tape;
pub mod trainer;
pub mod tuning;
pub mod weights;
