//! Reinforcement learning: the pure parts take slices or tensors and return values.

pub mod advantage;
pub mod balance;
pub mod gdpo;
pub mod head;
pub mod log_probs;
pub mod lora;
pub mod modpo;
pub mod packing;
pub mod policy;
pub mod ppo;
pub mod prompt_cache;
pub mod remax;
pub mod rollout;
pub mod update;
pub mod value_head;
