//! Reinforcement learning: the pure parts take slices or tensors and return values.

pub mod lora;
pub mod packing;
pub mod rollout;
pub mod value_head;
