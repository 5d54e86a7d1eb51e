//! Requests: when they come, how long they are, and which mix they want.

use std::collections::HashSet;

use ladle::preference::Coefficients;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};
use serde::{Deserialize, Serialize};

/// A log-normal number of tokens; `sigma` 0 is always the median.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Lengths {
    /// Median.
    pub median: f64,
    /// Standard deviation of the logarithm.
    pub sigma: f64,
    /// Longer ones are cut.
    pub most: usize,
}

/// When requests come.
#[derive(Debug, Clone, Copy, Serialize)]
pub enum Arrivals {
    /// At random, at a rate (1/s), for so many seconds; the first quarter is not counted.
    Poisson {
        /// Requests per second.
        rate: f64,
        /// Seconds.
        seconds: f64,
    },
    /// Clients that ask again as soon as they are answered.
    Clients {
        /// How many.
        clients: usize,
        /// Requests of each.
        rounds: usize,
        /// Whether an answer to each comes first that is not counted.
        warm_up: bool,
    },
}

/// Which mixes are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Preferences {
    /// The k-th of `n` mixes with probability ∝ k^−s.
    Zipf {
        /// Mixes.
        n: usize,
        /// Exponent.
        s: f64,
    },
    /// A point of the simplex: no mix comes twice.
    Uniform,
    /// Each client its own.
    PerClient,
}

impl Preferences {
    /// What the results call it.
    pub fn name(&self) -> String {
        match self {
            Self::Zipf { n: 1, .. } => "shared".into(),
            Self::Zipf { n, s } => format!("zipf({s}) of {n}"),
            Self::Uniform => "uniform".into(),
            Self::PerClient => "distinct".into(),
        }
    }
}

/// A request.
pub struct Request {
    /// Prompt tokens.
    pub prompt: usize,
    /// Tokens to generate.
    pub output: usize,
    /// Its mix.
    pub c: Coefficients,
}

/// A load, which a seed makes definite.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// When.
    pub arrivals: Arrivals,
    /// Which.
    pub preferences: Preferences,
    /// Prompt tokens.
    pub prompt: Lengths,
    /// Generated tokens.
    pub output: Lengths,
}

/// Draws from a load.
pub struct Source {
    load: Load,
    /// Of arrivals and lengths, and of mixes: which mixes are asked for changes nothing else.
    rng: ChaCha8Rng,
    mixes: ChaCha8Rng,
    /// Cumulative weights of a Zipf distribution.
    cumulative: Vec<f64>,
}

impl Source {
    /// The draws of `seed`.
    pub fn new(load: Load, seed: u64) -> Self {
        let mut cumulative = Vec::new();
        if let Preferences::Zipf { n, s } = load.preferences {
            let mut sum = 0.0;
            cumulative.extend((1..=n).map(|k| {
                sum += (k as f64).powf(-s);
                sum
            }));
        }
        let [rng, mixes] = [seed, !seed].map(ChaCha8Rng::seed_from_u64);
        Self { load, rng, mixes, cumulative }
    }

    /// A request of a client.
    pub fn request(&mut self, client: usize) -> Request {
        let prompt = self.length(self.load.prompt);
        let output = self.length(self.load.output);
        Request { prompt, output, c: self.mix(client) }
    }

    /// Seconds to the next arrival at `rate`.
    pub fn gap(&mut self, rate: f64) -> f64 {
        -(1.0 - uniform(&mut self.rng)).ln() / rate
    }

    /// The mix of a client's next request.
    pub fn mix(&mut self, client: usize) -> Coefficients {
        let point = match self.load.preferences {
            Preferences::Zipf { .. } => {
                let at = uniform(&mut self.mixes) * self.cumulative.last().copied().unwrap_or(0.0);
                [self.cumulative.partition_point(|&sum| sum <= at) as f64, 0.0]
            }
            Preferences::Uniform => [uniform(&mut self.mixes), uniform(&mut self.mixes)],
            Preferences::PerClient => [client as f64, 0.0],
        };
        Coefficients { backbones: point.to_vec(), sft: 1.0 - point[0] - point[1] }
    }

    fn length(&mut self, lengths: Lengths) -> usize {
        // Box and Muller.
        let radius = (-2.0 * (1.0 - uniform(&mut self.rng)).ln()).sqrt();
        let normal = radius * (std::f64::consts::TAU * uniform(&mut self.rng)).cos();
        let length = lengths.median * (lengths.sigma * normal).exp();
        (length.round() as usize).clamp(1, lengths.most)
    }
}

fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// Entries that an LRU cache of mixes needs for each hit rate in the long run, where any does:
/// stack distances of `draws` requests, the first half to warm up.
pub fn lru_sizes(load: Load, draws: usize, rates: &[f64], seed: u64) -> Vec<Option<usize>> {
    let mut source = Source::new(load, seed);
    let (mut seen, mut recent) = (HashSet::new(), Vec::<u64>::new());
    let mut distances = Vec::new();
    for draw in 0..draws {
        let key = source.mix(draw).backbones[0].to_bits();
        let mut distance = usize::MAX;
        if !seen.insert(key) {
            let at = recent.iter().rposition(|&other| other == key).unwrap_or(0);
            distance = recent.len() - at;
            recent.remove(at);
        }
        recent.push(key);
        if draw >= draws / 2 {
            distances.push(distance);
        }
    }
    distances.sort_unstable();
    let at = |rate: &f64| {
        let index = ((rate * distances.len() as f64).ceil() as usize).clamp(1, distances.len());
        Some(distances[index - 1]).filter(|&size| size < usize::MAX)
    };
    rates.iter().map(at).collect()
}
