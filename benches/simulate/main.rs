//! The scenarios of a configuration, simulated.
//!
//! `cargo bench --workspace --bench simulate -- [--config FILE] [--out DIR]` writes `simulate.csv`, a line per
//! run, and `simulate.json`: the configuration, cache sizes and clients in a closed loop. The same
//! configuration gives the same files. docs/scale.md says what is assumed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use simulate::{
    load::{Arrivals, Lengths, Load, Preferences, lru_sizes},
    machine::{Machine, Soup},
    policy::{Engine, Policy, System},
    run::{Outcome, simulate},
};

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Config {
    seed: u64,
    requests: f64,
    least_seconds: f64,
    engine: Engine,
    prompt: Lengths,
    output: Lengths,
    machine: Vec<Machine>,
    soup: Vec<Soup>,
    scenario: Vec<Scenario>,
    grid: Grid,
    closed: Vec<Closed>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Scenario {
    machine: String,
    soup: String,
    replicas: usize,
    rates: Vec<f64>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Grid {
    policies: Vec<Policy>,
    preferences: Vec<Preferences>,
}

/// Clients that ask again as soon as they are answered.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Closed {
    machine: String,
    soup: String,
    engine: Engine,
    /// How many, and how often each asks.
    clients: Vec<(usize, usize)>,
    prompt: Lengths,
    output: Lengths,
    preferences: Vec<Preferences>,
    policies: Vec<Policy>,
}

/// One simulation to make, and how it is named in the results.
struct Job<'a> {
    system: System<'a>,
    load: Load,
    replicas: usize,
    clients: Option<usize>,
    rate: Option<f64>,
}

#[derive(Serialize)]
struct Row {
    machine: String,
    replicas: usize,
    soup: String,
    policy: Policy,
    preferences: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    clients: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<f64>,
    #[serde(flatten)]
    outcome: Outcome,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let option = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).map(PathBuf::from)
    };
    let text = match option("--config") {
        None => include_str!("config.toml").to_owned(),
        Some(path) => std::fs::read_to_string(&path).with_context(|| format!("{path:?}"))?,
    };
    let config: Config = toml::from_str(&text).context("the configuration")?;
    let results = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../results");
    let out = option("--out").unwrap_or_else(results);

    let open = run_all(&config, open_jobs(&config)?, "open")?;
    let closed = run_all(&config, closed_jobs(&config)?, "closed")?;
    std::fs::create_dir_all(&out)?;
    std::fs::write(out.join("simulate.csv"), csv(&open)?)?;
    let report = json!({
        "cache": cache_sizes(&config),
        "closed": closed,
        "config": config,
    });
    std::fs::write(out.join("simulate.json"), format!("{report:#}\n"))?;
    Ok(())
}

fn find<'a, T>(all: &'a [T], name: &str, of: impl Fn(&T) -> &str) -> Result<&'a T> {
    all.iter().find(|one| of(one) == name).with_context(|| format!("{name} is not configured"))
}

fn open_jobs(config: &Config) -> Result<Vec<Job<'_>>> {
    let mut jobs = Vec::new();
    for scenario in &config.scenario {
        let machine = find(&config.machine, &scenario.machine, |one| &one.name)?;
        let soup = find(&config.soup, &scenario.soup, |one| &one.name)?;
        for &policy in &config.grid.policies {
            if matches!(policy, Policy::OneMix | Policy::Plugin) && soup.mix_rank().is_none() {
                continue; // llama.cpp has no such thing for full checkpoints, and the resolver refuses them.
            }
            for &preferences in &config.grid.preferences {
                for &rate in &scenario.rates {
                    let replicas = scenario.replicas;
                    let own = rate / replicas as f64;
                    let seconds = (config.requests / own).max(config.least_seconds);
                    let arrivals = Arrivals::Poisson { rate: own, seconds };
                    let (prompt, output) = (config.prompt, config.output);
                    let load = Load { arrivals, preferences, prompt, output };
                    let system = System { machine, soup, engine: &config.engine, policy };
                    jobs.push(Job { system, load, replicas, clients: None, rate: Some(rate) });
                }
            }
        }
    }
    Ok(jobs)
}

fn closed_jobs(config: &Config) -> Result<Vec<Job<'_>>> {
    let mut jobs = Vec::new();
    for closed in &config.closed {
        let machine = find(&config.machine, &closed.machine, |one| &one.name)?;
        let soup = find(&config.soup, &closed.soup, |one| &one.name)?;
        for &policy in &closed.policies {
            for &preferences in &closed.preferences {
                for &(clients, rounds) in &closed.clients {
                    let arrivals = Arrivals::Clients { clients, rounds, warm_up: true };
                    let (prompt, output) = (closed.prompt, closed.output);
                    let load = Load { arrivals, preferences, prompt, output };
                    let system = System { machine, soup, engine: &closed.engine, policy };
                    let clients = Some(clients);
                    jobs.push(Job { system, load, replicas: 1, clients, rate: None });
                }
            }
        }
    }
    Ok(jobs)
}

fn run_all(config: &Config, jobs: Vec<Job<'_>>, what: &'static str) -> Result<Vec<Row>> {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {elapsed}")?;
    let progress = ProgressBar::new(jobs.len() as u64).with_style(style).with_message(what);
    let run = |job: &Job<'_>| {
        let row = job.run(config.seed);
        progress.inc(1);
        row
    };
    Ok(jobs.par_iter().map(run).collect())
}

impl Job<'_> {
    fn run(&self, seed: u64) -> Row {
        let mut outcome = simulate(self.system, self.load, seed);
        outcome.tokens_per_s *= self.replicas as f64;
        outcome.finished_per_s *= self.replicas as f64;
        Row {
            machine: self.system.machine.name.clone(),
            replicas: self.replicas,
            soup: self.system.soup.name.clone(),
            policy: self.system.policy,
            preferences: self.load.preferences.name(),
            clients: self.clients,
            rate: self.rate,
            outcome,
        }
    }
}

/// Mixes that an LRU cache must hold for a hit rate, and their bytes in each form.
fn cache_sizes(config: &Config) -> Value {
    const RATES: [f64; 3] = [0.5, 0.9, 0.99];
    let sizes = |&preferences: &Preferences| {
        let arrivals = Arrivals::Clients { clients: 1, rounds: 1, warm_up: false };
        let (prompt, output) = (config.prompt, config.output);
        let load = Load { arrivals, preferences, prompt, output };
        let mixes = lru_sizes(load, 200_000, &RATES, config.seed);
        let bytes = |soup: &Soup| {
            let slot = soup.mix_rank().map(|(_, slot)| soup.adapter_bytes(slot));
            let gb = |each: f64| -> Vec<Option<f64>> {
                mixes.iter().map(|n| n.map(|n| (n as f64 * each / 1e9).round())).collect()
            };
            json!({
                "soup": soup.name,
                "merged_gb": gb(soup.merged_bytes()),
                "adapter_gb": slot.map(gb),
                "sources_gb": (soup.source_bytes() / 1e9).round(),
            })
        };
        let soups: Vec<Value> = config.soup.iter().map(bytes).collect();
        json!({ "preferences": preferences.name(), "mixes": mixes, "soups": soups })
    };
    let all: Vec<Value> = config.grid.preferences.iter().map(sizes).collect();
    json!({ "hit_rates": RATES, "sizes": all })
}

/// Rows as CSV; pairs become two columns.
fn csv(rows: &[Row]) -> Result<String> {
    let mut lines: Vec<String> = Vec::new();
    for row in rows {
        let Value::Object(fields) = serde_json::to_value(row)? else { continue };
        let (mut names, mut cells) = (Vec::new(), Vec::new());
        for (name, value) in fields {
            match value {
                Value::Array(pair) => {
                    names.extend([format!("{name}_p50"), format!("{name}_p99")]);
                    cells.extend(pair.iter().map(cell));
                }
                value => {
                    names.push(name);
                    cells.push(cell(&value));
                }
            }
        }
        if lines.is_empty() {
            lines.push(names.join(","));
        }
        lines.push(cells.join(","));
    }
    Ok(lines.join("\n") + "\n")
}

/// Four significant digits.
fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(n) if n.is_f64() => {
            let x = n.as_f64().unwrap_or(0.0);
            let digits = 3 - x.abs().max(1e-12).log10().floor() as i32;
            let scale = 10f64.powi(digits);
            format!("{}", (x * scale).round() / scale)
        }
        Value::Null => String::new(),
        other => other.to_string(),
    }
}
