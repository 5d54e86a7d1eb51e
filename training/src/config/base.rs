//! What a configuration asks of its kind of base model.

use ladle::{model::config::ModelConfig, soup::Activation};

use super::{Config, ConfigError, check::value_error};

impl Config {
    /// Refuses settings that a model of this kind cannot have.
    pub fn check_base(&self, model: &ModelConfig) -> Result<(), ConfigError> {
        let encodes = model.encoder.is_some();
        let adapters =
            [("lora", Some(&self.lora)), ("sft.lora", self.sft.as_ref().map(|s| &s.lora))];
        for (key, lora) in adapters {
            let targets = lora.into_iter().flat_map(|lora| &lora.targets);
            let known = model.targets();
            if let Some(target) = targets.into_iter().find(|t| !known.contains(&t.as_str())) {
                let expected = if encodes {
                    "q, k, v, o, wi, wi_0, wi_1 or wo, the linear layers of a T5"
                } else {
                    "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj or down_proj"
                };
                return Err(value_error(&format!("{key}.targets"), target, expected));
            }
        }
        if encodes && self.lora.activation == Activation::Answer {
            let expected = "all with an encoder–decoder model, whose encoder learns too";
            return Err(value_error("lora.activation", "answer", expected));
        }
        if encodes && self.rl.recompute {
            let expected = "false with an encoder–decoder model, whose layers are kept";
            return Err(value_error("rl.recompute", true, expected));
        }
        Ok(())
    }
}
