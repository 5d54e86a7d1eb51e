//! Rewards-in-Context (RiC: Yang et al. 2024): one policy that its prompts tell how much of each
//! reward is wanted.

pub mod goals;
pub mod stages;
