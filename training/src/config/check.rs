//! Checks of a configuration, before anything is opened.

use ladle::{
    model::names::{T5_TARGETS, TARGETS},
    soup::{Activation, manifest::is_name},
};

use super::{
    Algorithm, Config, ConfigError, ContextConfig, DataConfig, Decay, MixingConfig, RlConfig,
};
use crate::rl::balance::{Normalisation, Strategy};

impl Config {
    /// Refuses values that no run could use.
    pub fn check(&self) -> Result<(), ConfigError> {
        if let MixingConfig::Context(context) = &self.mixing {
            self.check_context(context)?;
        }
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let share = |value: f64| (0.0..=1.0).contains(&value);
        let (rl, rollout) = (&self.rl, &self.rollout);
        let counts = [
            ("rl.steps", rl.steps),
            ("rl.batch", rl.batch as u64),
            ("rl.minibatch", rl.minibatch as u64),
            ("rl.epochs", rl.epochs as u64),
            ("rl.rows", rl.rows as u64),
            ("rl.standardise_on", rl.standardise_on as u64),
            ("rl.checkpoint_every", rl.checkpoint_every),
            ("balance.every", self.balance.every),
            ("rollout.max_new_tokens", rollout.max_new_tokens as u64),
            ("rollout.slots", rollout.slots as u64),
            ("rollout.samples", rollout.samples as u64),
        ];
        let sft = self.sft.iter().flat_map(|sft| {
            [
                ("sft.epochs", sft.epochs),
                ("sft.batch", sft.batch as u64),
                ("sft.max_response_tokens", sft.max_response_tokens as u64),
                ("sft.evaluate_every", sft.evaluate_every),
                ("sft.steps", sft.steps.unwrap_or(1)),
                ("sft.validate_on", sft.validate_on as u64),
            ]
        });
        for (key, value) in counts.into_iter().chain(sft) {
            if value == 0 {
                return Err(value_error(key, value, "at least 1"));
            }
        }
        let numbers = [
            ("rollout.temperature", rollout.temperature),
            ("rl.learning_rate", rl.learning_rate),
            ("rl.kl_horizon", rl.kl_horizon),
            ("rl.kl_stop", rl.kl_stop),
            ("rl.clip", rl.clip),
            ("rl.value_rate", rl.value_rate),
            ("rl.advantage_clip", rl.advantage_clip),
            ("optimizer.max_grad_norm", self.optimizer.max_grad_norm),
            ("optimizer.epsilon", self.optimizer.epsilon),
            ("lora.alpha", self.lora.alpha),
            ("balance.floor", self.balance.floor),
            ("balance.lead", self.balance.lead.unwrap_or(1.0)),
        ];
        let sft = self.sft.iter().flat_map(|sft| {
            [("sft.learning_rate", sft.learning_rate), ("sft.lora.alpha", sft.lora.alpha)]
        });
        for (key, value) in numbers.into_iter().chain(sft) {
            if !positive(value) {
                return Err(value_error(key, value, "a number above 0"));
            }
        }
        for (key, value) in [
            ("rl.kl", rl.kl),
            ("rl.kl_target", rl.kl_target),
            ("rl.value_weight", rl.value_weight),
            ("optimizer.weight_decay", self.optimizer.weight_decay),
            ("balance.shift", self.balance.shift),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(value_error(key, value, "a number of at least 0"));
            }
        }
        for (key, value) in [("rl.gamma", rl.gamma), ("rl.lambda", rl.lambda)] {
            if !share(value) {
                return Err(value_error(key, value, "a number from 0 to 1"));
            }
        }
        for (key, value) in
            [("optimizer.beta1", self.optimizer.beta1), ("optimizer.beta2", self.optimizer.beta2)]
        {
            if !(0.0..1.0).contains(&value) {
                return Err(value_error(key, value, "a number from 0 to less than 1"));
            }
        }
        let adapters =
            [("lora", Some(&self.lora)), ("sft.lora", self.sft.as_ref().map(|s| &s.lora))];
        for (key, lora) in adapters {
            let Some(lora) = lora else { continue };
            let [rank, targets, dropout] =
                ["rank", "targets", "dropout"].map(|name| format!("{key}.{name}"));
            if !(1..=1024).contains(&lora.rank) {
                return Err(value_error(&rank, lora.rank, "1 to 1024"));
            }
            if !(0.0..1.0).contains(&lora.dropout) {
                let expected = "a number from 0 to less than 1";
                return Err(value_error(&dropout, lora.dropout, expected));
            }
            let Some(named) = &lora.targets else { continue };
            let known = |t: &str| TARGETS.contains(&t) || T5_TARGETS.contains(&t);
            if let Some(target) = named.iter().find(|t| !known(t)) {
                let expected = "the last name of a linear layer, such as q_proj, or q of a T5";
                return Err(value_error(&targets, target, expected));
            }
            if named.is_empty() {
                let expected = "at least one, or left out: all linear layers of the base";
                return Err(value_error(&targets, "[]", expected));
            }
        }
        if self.sft.as_ref().is_some_and(|sft| !sft.lora.activation.is_default()) {
            let expected = "left out: θ_sft computes prompts and answers";
            return Err(value_error("sft.lora.activation", "answer", expected));
        }
        if self.sft.as_ref().is_some_and(|sft| sft.lora.shared.is_some()) {
            let expected = "left out: there is one supervised adapter";
            return Err(value_error("sft.lora.shared", "given", expected));
        }
        if let (Some(mib), Activation::All) = (rl.prompt_cache_mib, self.lora.activation) {
            let expected = "left out unless lora.activation is \"answer\"";
            return Err(value_error("rl.prompt_cache_mib", mib, expected));
        }
        let balance = &self.balance;
        if balance.strategy == Strategy::Delta && balance.normalisation() == Normalisation::Sum {
            let expected = "softmax with strategy delta, whose weights before it may be negative";
            return Err(value_error("balance.normalisation", "sum", expected));
        }
        let ascending = rl.keep.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascending || rl.keep.iter().any(|step| !(1..=rl.steps).contains(step)) {
            let expected = "ascending numbers of updates from 1 to rl.steps";
            return Err(value_error("rl.keep", format!("{:?}", rl.keep), expected));
        }
        if let Some(steps) = rl.decay_steps {
            if rl.decay == Decay::Constant {
                let expected = "left out with rl.decay constant";
                return Err(value_error("rl.decay_steps", steps, expected));
            }
            if steps < rl.steps {
                return Err(value_error("rl.decay_steps", steps, "at least rl.steps"));
            }
        }
        self.check_data()?;
        if rl.batch % rollout.samples != 0 {
            return Err(value_error("rl.batch", rl.batch, "a multiple of rollout.samples"));
        }
        let in_groups = matches!(rl.algorithm, Algorithm::Rloo | Algorithm::Modpo);
        if in_groups && rollout.samples < 2 {
            let expected = "at least 2 with algorithm rloo or modpo";
            return Err(value_error("rollout.samples", rollout.samples, expected));
        }
        if self.mixing == MixingConfig::Identity(false) {
            return Err(value_error("mixing.identity", false, "true, or beta or matrix instead"));
        }
        if let MixingConfig::Weights(weights) = &self.mixing {
            let valid = weights.iter().all(|w| w.is_finite() && *w >= 0.0);
            if weights.len() != self.objectives.len() || !valid || weights.iter().all(|w| *w == 0.0)
            {
                let expected = "one weight of at least 0 per objective, not all 0";
                return Err(value_error("mixing.weights", format!("{weights:?}"), expected));
            }
        }
        if rl.algorithm == Algorithm::Modpo {
            if !rollout.samples.is_multiple_of(2) {
                let expected = "an even number with algorithm modpo, which makes pairs of them";
                return Err(value_error("rollout.samples", rollout.samples, expected));
            }
            if rl.kl <= 0.0 {
                let expected = "a number above 0 with algorithm modpo, whose β it is";
                return Err(value_error("rl.kl", rl.kl, expected));
            }
            if rl.kl_target > 0.0 {
                let expected = "0 with algorithm modpo, whose β stays as it is";
                return Err(value_error("rl.kl_target", rl.kl_target, expected));
            }
            if self.balance.strategy != Strategy::Average {
                let expected = "average with algorithm modpo";
                return Err(value_error("balance.strategy", self.balance.strategy, expected));
            }
        }
        if self.balance.strategy == Strategy::Gdpo && rl.algorithm != Algorithm::Rloo {
            let expected =
                "rloo with balance.strategy gdpo, which compares the answers to one prompt";
            return Err(value_error("rl.algorithm", rl.algorithm, expected));
        }
        self.check_unread()?;
        // The default means a whole batch where batches are smaller.
        if rl.minibatch > rl.batch.max(RlConfig::default().minibatch) {
            return Err(value_error("rl.minibatch", rl.minibatch, "at most rl.batch"));
        }
        if !is_name(&self.name) {
            let expected = "1 to 64 of the characters A-Z a-z 0-9 _ - .";
            return Err(value_error("name", &self.name, expected));
        }
        if self.objectives.len() < 2 {
            return Err(value_error("objectives", self.objectives.len(), "at least 2"));
        }
        for (index, objective) in self.objectives.iter().enumerate() {
            let name = &objective.name;
            let taken = name == "sft" || self.objectives[..index].iter().any(|o| o.name == *name);
            // Adapters and metrics have directories of these names.
            if taken || !is_name(name) || name.starts_with('.') {
                let key = format!("objectives[{index}].name");
                let expected = "a name of its own, not \"sft\", of 1 to 64 of the characters \
                                A-Z a-z 0-9 _ - . and without a dot in front";
                return Err(value_error(&key, name, expected));
            }
        }
        Ok(())
    }
}

impl Config {
    /// RiC: its own settings, and those of other methods, which it would ignore.
    fn check_context(&self, context: &ContextConfig) -> Result<(), ConfigError> {
        let ContextConfig { steps, batch, max_response_tokens, learning_rate, .. } = *context;
        self.check_unread_in_context()?;
        if self.data.several() || self.data.iter().any(|(_, set)| set.rewards.is_some()) {
            let expected = "one data set, judged by all rewards, with mixing.context";
            return Err(value_error("data", "several types of task", expected));
        }
        let online = context.online.as_ref();
        let key = |name: &str| format!("mixing.context.{name}");
        let counts = [
            ("steps", steps),
            ("batch", batch as u64),
            ("max_response_tokens", max_response_tokens as u64),
            ("online.steps", online.map_or(1, |online| online.steps)),
            ("online.samples", online.map_or(1, |online| online.samples as u64)),
        ];
        if let Some((name, value)) = counts.into_iter().find(|(_, value)| *value == 0) {
            return Err(value_error(&key(name), value, "at least 1"));
        }
        let online_rate = online.map_or(1.0, |online| online.learning_rate);
        for (name, rate) in
            [("learning_rate", learning_rate), ("online.learning_rate", online_rate)]
        {
            if !(rate.is_finite() && rate > 0.0) {
                return Err(value_error(&key(name), rate, "a number above 0"));
            }
        }
        match online.map(|online| online.quantile) {
            Some(q) if !(0.0..1.0).contains(&q) => {
                let expected = "a number from 0 to less than 1";
                Err(value_error(&key("online.quantile"), q, expected))
            }
            _ => Ok(()),
        }
    }

    /// The data sets, and which rewards judge them.
    fn check_data(&self) -> Result<(), ConfigError> {
        let named = |name: &String| self.objectives.iter().any(|o| o.name == *name);
        let mut names: Vec<&str> = Vec::new();
        for (key, set) in self.data.iter() {
            let [tokens, split, name, rewards] = ["max_prompt_tokens", "split", "name", "rewards"]
                .map(|field| format!("{key}.{field}"));
            if set.max_prompt_tokens == 0 {
                return Err(value_error(&tokens, 0, "at least 1"));
            }
            set.check_unread(&key)?;
            if set.split.is_some() && (set.validation.is_some() || set.test.is_some()) {
                let expected = "left out where validation or test is given";
                return Err(value_error(&split, "given", expected));
            }
            if self.data.several() {
                let got = set.name.as_deref().unwrap_or_default();
                if !is_name(got) || names.contains(&got) {
                    let expected = "a name of its own for each of several data sets, of the \
                                    characters A-Z a-z 0-9 _ - .";
                    return Err(value_error(&name, format!("{got:?}"), expected));
                }
                names.push(got);
            }
            if let Some(judges) = &set.rewards
                && (judges.is_empty() || !judges.iter().all(named))
            {
                let expected = "objectives of this configuration, at least one";
                return Err(value_error(&rewards, format!("{judges:?}"), expected));
            }
        }
        for (index, objective) in self.objectives.iter().enumerate() {
            let judges = |set: &DataConfig| {
                set.rewards.as_ref().is_none_or(|names| names.contains(&objective.name))
            };
            if !self.data.iter().any(|(_, set)| judges(set)) {
                let key = format!("objectives[{index}].name");
                let expected = "an objective that the rewards of some data set name";
                return Err(value_error(&key, &objective.name, expected));
            }
        }
        match self.data.iter().next() {
            Some(_) => Ok(()),
            None => Err(value_error("data", "empty", "at least one data set")),
        }
    }
}

pub(super) fn value_error(key: &str, got: impl ToString, expected: &'static str) -> ConfigError {
    ConfigError::Value { key: key.to_owned(), got: got.to_string(), expected }
}
