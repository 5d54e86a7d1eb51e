//! Settings that a run would not read: refused where they are not the defaults.

use ladle::soup::Activation;
use serde::Serialize;
use toml::{Table, Value};

use super::{
    Algorithm, Config, ConfigError, DataConfig, DataFormat, MixingConfig, check::value_error,
};
use crate::rl::balance::{Normalisation, Strategy};

/// Settings of `rl` that count where nothing is learned from rewards.
const OF_ALL_STAGES: [&str; 4] = ["rows", "recompute", "standardise_on", "checkpoint_every"];

/// Settings of `rl` that only PPO has: the others make one update of a batch, without a value model.
const OF_PPO: [&str; 8] =
    ["minibatch", "epochs", "kl_stop", "gamma", "lambda", "clip", "value_weight", "value_rate"];

impl Config {
    /// Refuses settings of another algorithm, strategy or number of policies.
    pub(super) fn check_unread(&self) -> Result<(), ConfigError> {
        let (rl, strategy) = (&self.rl, self.balance.strategy);
        let clips = matches!(rl.algorithm, Algorithm::ReMax | Algorithm::Rloo);
        let moves = matches!(strategy, Strategy::Inverse | Strategy::Delta);
        let alone = matches!(self.mixing, MixingConfig::Weights(_) | MixingConfig::Context(_));
        let rules: [(&str, &[&str], bool, &'static str); 7] = [
            ("rl", &OF_PPO, rl.algorithm == Algorithm::Ppo, "left out unless rl.algorithm is ppo"),
            ("rl", &["advantage_clip"], clips, "left out unless rl.algorithm is remax or rloo"),
            ("rl", &["kl_horizon"], rl.kl_target > 0.0, "left out where rl.kl_target is 0"),
            (
                "rl",
                &["kl_target", "kl_horizon"],
                rl.kl > 0.0 || rl.kl_target == 0.0,
                "left out where rl.kl is 0, which no target moves",
            ),
            (
                "balance",
                &["normalisation", "every", "lead"],
                moves,
                "left out unless balance.strategy is inverse or delta",
            ),
            (
                "balance",
                &["shift", "floor"],
                strategy == Strategy::Inverse,
                "left out unless balance.strategy is inverse",
            ),
            ("balance", &["lead"], !alone, "left out with one policy, whose weights need no lead"),
        ];
        for (section, keys, read, expected) in rules {
            let mut changed = self.changed(section).into_iter();
            if let Some((key, value)) = changed.find(|(key, _)| !read && keys.contains(&&**key)) {
                return Err(value_error(&format!("{section}.{key}"), value, expected));
            }
        }
        let frozen = strategy == Strategy::Inverse
            && self.balance.normalisation() == Normalisation::Sum
            && matches!(self.mixing, MixingConfig::Identity(_));
        if frozen {
            let expected = "average with mixing.identity: a share of 0 is 0 whatever divides it";
            return Err(value_error("balance.strategy", "inverse", expected));
        }
        if alone && !self.lora.shared() {
            let expected = "left out with one policy, which has no A to share";
            return Err(value_error("lora.shared", false, expected));
        }
        Ok(())
    }

    /// RiC learns from answers: settings of what learns from rewards.
    pub(super) fn check_unread_in_context(&self) -> Result<(), ConfigError> {
        for section in ["rl", "balance"] {
            let counts = |key: &str| section == "rl" && OF_ALL_STAGES.contains(&key);
            let mut changed = self.changed(section).into_iter();
            if let Some((key, value)) = changed.find(|(key, _)| !counts(key)) {
                let expected = "left out with mixing.context, which is tuned on answers";
                return Err(value_error(&format!("{section}.{key}"), value, expected));
            }
        }
        if self.rollout.samples != 1 {
            let expected = "1 with mixing.context";
            return Err(value_error("rollout.samples", self.rollout.samples, expected));
        }
        if self.lora.activation == Activation::Answer {
            let expected = "left out with mixing.context, whose prompts the policy reads";
            return Err(value_error("lora.activation", "answer", expected));
        }
        Ok(())
    }

    /// The settings of `rl` or `balance` that are not the defaults.
    fn changed(&self, section: &str) -> Vec<(String, Value)> {
        match section {
            "rl" => changed(&self.rl),
            _ => changed(&self.balance),
        }
    }
}

impl DataConfig {
    /// Refuses settings of another format; `key` names the data set.
    pub(super) fn check_unread(&self, key: &str) -> Result<(), ConfigError> {
        let given = |name: &Option<String>| name.clone().unwrap_or_default();
        let other = self.documents != Self::documents() && self.format != DataFormat::Alce;
        let general = self.format == DataFormat::Jsonl;
        let columns = "left out unless the format is jsonl: the others name their own columns";
        for (name, unread, got, expected) in [
            ("documents", other, self.documents.to_string(), "left out unless the format is alce"),
            ("id", self.id.is_some() && !general, given(&self.id), columns),
            ("reference", self.reference.is_some() && !general, given(&self.reference), columns),
        ] {
            if unread {
                return Err(value_error(&format!("{key}.{name}"), got, expected));
            }
        }
        Ok(())
    }
}

/// The settings that are not the defaults.
fn changed<T: Serialize + Default>(section: &T) -> Vec<(String, Value)> {
    let table = |section: &T| Table::try_from(section).unwrap_or_default();
    let defaults = table(&T::default());
    let given = table(section).into_iter();
    given.filter(|(key, value)| defaults.get(key) != Some(value)).collect()
}
