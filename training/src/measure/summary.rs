//! The report of an evaluation: its front, the curves of a run's training, samples.

use std::{fs, path::Path};

use serde_json::Value;

use super::{
    evaluate::Evaluation,
    report::{Curve, Report},
    sweep::Subject,
};
use crate::{
    config::{Config, ContextConfig, MixingConfig, RlConfig},
    run::Run,
};

/// Makes the report of an evaluation.
pub fn report(subject: &Subject, evaluation: &Evaluation) -> Report {
    let config = &subject.run.config;
    let decoding = match evaluation.front.temperature {
        0.0 => "greedy".to_owned(),
        temperature => format!("sampled at temperature {temperature}"),
    };
    let mut facts = vec![("base", config.base.clone())];
    match &subject.soup {
        None => facts.extend(training(config)),
        Some((soup, _)) => facts.push(("soup", soup.display().to_string())),
    }
    facts.push((
        "decoding",
        format!("{decoding}, at most {} tokens", config.rollout.max_new_tokens),
    ));
    facts.extend(subject.server.engine.clone().map(|url| ("engine", url)));
    Report {
        title: format!("{}: the front", config.name),
        facts: facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        front: evaluation.front.clone(),
        curves: if subject.soup.is_none() { curves(&subject.run) } else { Vec::new() },
        samples: evaluation.shown.clone(),
    }
}

/// How a run made its soup.
fn training(config: &Config) -> [(&'static str, String); 2] {
    let mixing = match &config.mixing {
        MixingConfig::Beta(beta) => format!("β = {beta}"),
        MixingConfig::Matrix(rows) => format!("B = {rows:?}"),
        MixingConfig::Identity(_) => "B = I".to_owned(),
        MixingConfig::Weights(weights) => {
            format!("one policy, {} with weights {weights:?}", config.balance.strategy)
        }
        MixingConfig::Context(_) => "one policy, told the rewards wanted (RiC)".to_owned(),
    };
    [("mixing", mixing), ("training", tuning(config))]
}

/// One plot per measured quantity, with one line per backbone.
fn curves(run: &Run) -> Vec<Curve> {
    let objectives = run.config.objectives.iter().zip(run.rewards.iter());
    let rewards = objectives.map(|(objective, reward)| {
        (format!("reward/{}", objective.name), reward.unit().to_owned())
    });
    let others = [
        ("kl".to_owned(), "nats per response".to_owned()),
        ("response_tokens".to_owned(), "tokens".to_owned()),
        ("finished".to_owned(), "share of responses".to_owned()),
    ];
    let curve = |(key, unit): (String, String)| {
        let series = run.config.policies().into_iter().map(|name| {
            let path = run.places.run.join("metrics").join(name).join("metrics.jsonl");
            (name.to_owned(), points(&path, &key))
        });
        Curve { title: key.replace('_', " "), unit, series: series.collect() }
    };
    rewards.chain(others).map(curve).collect()
}

/// How the policies were tuned, in words.
fn tuning(config: &Config) -> String {
    match &config.mixing {
        MixingConfig::Context(ContextConfig { steps, batch, online, .. }) => {
            let online = online.as_ref().map_or(0, |online| online.steps);
            format!("supervised, {steps} offline and {online} online steps of {batch} sequences")
        }
        _ => {
            let RlConfig { algorithm, steps, batch, .. } = &config.rl;
            format!("{algorithm}, {steps} steps of {batch} responses")
        }
    }
}

/// `(step, value)` of one key of a metrics file; lines without the key are left out.
fn points(path: &Path, key: &str) -> Vec<(f64, f64)> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter_map(|line| Some((line["step"].as_f64()?, line[key].as_f64()?))).collect()
}
