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
            let Some(lora) = lora else { continue };
            let known = model.targets();
            if let Some(target) = lora.targets(model).into_iter().find(|t| !known.contains(t)) {
                let (key, got) = (format!("{key}.targets"), target.to_owned());
                return Err(ConfigError::Target { key, got, known: known.join(", ") });
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
