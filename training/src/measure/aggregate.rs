//! `aggregate`: combines evaluations of one comparison, each of another training seed: means and
//! spread over the seeds, and paired differences with intervals over seeds and prompts.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{
    bootstrap::{self, Interval},
    points::mean,
    regime::Region,
    results::{FrontFile, MethodFront},
};
use crate::{
    checkpoint::CheckpointError,
    data::{
        DataError,
        rows::{OnMalformed, read_csv},
    },
};

/// Why evaluations cannot be combined.
#[derive(Debug, thiserror::Error)]
pub enum AggregateError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] CheckpointError),
    /// `samples.csv` cannot be read.
    #[error(transparent)]
    Samples(#[from] DataError),
    /// `front.json` does not have this program's format.
    #[error("{path}: {reason}")]
    Front {
        /// Path of the file.
        path: PathBuf,
        reason: String,
    },
    /// Fewer than two evaluations.
    #[error("{0} evaluations, expected at least 2, one for each training seed")]
    Few(usize),
    /// Two evaluations are not of the same comparison.
    #[error("{path}: {what} differ from those of {first}")]
    Differ {
        /// The evaluation that differs.
        path: PathBuf,
        /// The evaluation that it is compared with.
        first: PathBuf,
        what: &'static str,
    },
    /// An evaluation lacks the baseline.
    #[error("{path}: no method {name:?}; it has {known}")]
    Baseline {
        path: PathBuf,
        /// The baseline.
        name: String,
        /// Methods of the evaluation.
        known: String,
    },
}

type Result<T> = std::result::Result<T, AggregateError>;

/// A mean over training seeds, with the standard deviation between them (over n − 1).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    pub mean: f64,
    pub deviation: f64,
}

impl Spread {
    fn of(values: &[f64]) -> Option<Self> {
        let middle = mean(values);
        let squares: f64 = values.iter().map(|value| (value - middle).powi(2)).sum();
        let deviation = (squares / values.len().saturating_sub(1).max(1) as f64).sqrt();
        (!values.is_empty()).then_some(Self { mean: middle, deviation })
    }
}

/// One method over all training seeds, in σ of each seed's own scale.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The method; `chosen α` stands for what each seed chose on its validation prompts.
    pub method: String,
    /// Testing reward over the grid.
    pub testing: Option<Spread>,
    /// Testing reward by region of the simplex.
    pub regions: BTreeMap<&'static str, Spread>,
    pub hypervolume: Option<Spread>,
    /// Mean gap to the oracles.
    pub oracle_gap: Option<Spread>,
    /// Difference of testing rewards to the baseline: over the grid, and by region.
    pub gains: BTreeMap<&'static str, Interval>,
}

/// The combined result of the evaluations.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Aggregate {
    /// Number of training seeds.
    pub seeds: usize,
    /// Number of answers of each point and training seed.
    pub answers: usize,
    /// Method that the others are compared with.
    pub baseline: String,
    /// The methods that all evaluations have.
    pub rows: Vec<Row>,
    /// Methods that only some have.
    pub left_out: Vec<String>,
}

/// A point's answers: testing rewards by row and sampling seed.
type Answers = BTreeMap<(String, String), f64>;

/// An evaluation, read from its directory.
struct Evaluated {
    path: PathBuf,
    front: FrontFile,
    /// By method, one entry per preference of the grid.
    values: BTreeMap<String, Vec<Answers>>,
}

/// Combines the evaluations in `directories`.
pub fn aggregate(directories: &[PathBuf], baseline: &str) -> Result<Aggregate> {
    if directories.len() < 2 {
        return Err(AggregateError::Few(directories.len()));
    }
    let all = directories.iter().map(|path| Evaluated::read(path)).collect::<Result<Vec<_>>>()?;
    let (first, others) = (&all[0], &all[1..]);
    for other in others {
        first.comparable(other)?;
    }
    for one in &all {
        if one.method(baseline).is_none() {
            let known = one.names().join(", ");
            let (path, name) = (one.path.clone(), baseline.to_owned());
            return Err(AggregateError::Baseline { path, name, known });
        }
    }
    let names = first.names();
    let (common, left_out): (Vec<String>, Vec<String>) =
        names.into_iter().partition(|name| others.iter().all(|one| one.method(name).is_some()));
    let rows = common.into_iter().map(|name| row(&all, name, baseline));
    Ok(Aggregate {
        seeds: all.len(),
        answers: first.values.values().next().and_then(|p| p.first()).map_or(0, BTreeMap::len),
        baseline: baseline.to_owned(),
        rows: rows.collect(),
        left_out,
    })
}

/// Suffix of the name of a method whose α each evaluation chose itself.
const CHOSEN: &str = ", chosen α";

impl Evaluated {
    fn read(directory: &Path) -> Result<Self> {
        let path = directory.join("front.json");
        let text = fs::read_to_string(&path).map_err(CheckpointError::io(&path))?;
        let front: FrontFile = serde_json::from_str(&text)
            .map_err(|e| AggregateError::Front { path, reason: e.to_string() })?;
        let grid: Vec<Vec<f64>> =
            front.methods[0].points.iter().map(|p| p.preference.clone()).collect();
        let n = front.objectives.len();
        let scale = |rewards: &[Option<f64>], mu: &[f64]| -> f64 {
            let each = rewards.iter().zip(mu).zip(&front.objectives);
            each.filter_map(|((reward, mu), o)| Some(mu * ((*reward)? - o.mean) / o.std)).sum()
        };
        let samples = directory.join("samples.csv");
        let read = read_csv(&samples, OnMalformed::Fail, |_, fields| {
            let number = |index: usize| -> std::result::Result<f64, String> {
                let field: &(&str, &str) = fields.get(index).ok_or("too few columns")?;
                field
                    .1
                    .parse::<f64>()
                    .map_err(|_| format!("{}: {:?} is no number", field.0, field.1))
            };
            let text = |index: usize| fields.get(index).map(|field| field.1.to_owned());
            let mu = (1..=n).map(number).collect::<std::result::Result<Vec<f64>, String>>()?;
            // A reward that does not judge the row has an empty cell.
            let reward = |index: usize| match fields.get(index) {
                Some((_, "")) => Ok(None),
                _ => number(index).map(Some),
            };
            let rewards = (n + 4..2 * n + 4)
                .map(reward)
                .collect::<std::result::Result<Vec<Option<f64>>, String>>()?;
            let at =
                grid.iter().position(|point| *point == mu).ok_or("a preference off the grid")?;
            let (method, row, seed) = (text(0), text(n + 1), text(n + 2));
            let of = method.zip(row).zip(seed).ok_or("too few columns")?;
            Ok((of, at, scale(&rewards, &mu)))
        })?;
        let mut values: BTreeMap<String, Vec<Answers>> = BTreeMap::new();
        for (((method, row), seed), at, value) in read.rows {
            let points = values.entry(method).or_insert_with(|| vec![Answers::new(); grid.len()]);
            points[at].insert((row, seed), value);
        }
        Ok(Self { path: directory.to_owned(), front, values })
    }

    /// Refuses an evaluation of other rows, preferences, objectives or decoding.
    fn comparable(&self, other: &Self) -> Result<()> {
        let names =
            |one: &Self| one.front.objectives.iter().map(|o| o.name.clone()).collect::<Vec<_>>();
        let grid = |one: &Self| {
            one.front.methods[0].points.iter().map(|p| p.preference.clone()).collect::<Vec<_>>()
        };
        let rows = |one: &Self| -> BTreeSet<(String, String)> {
            one.values.values().flatten().flat_map(|answers| answers.keys().cloned()).collect()
        };
        let what = if names(self) != names(other) {
            "objectives"
        } else if grid(self) != grid(other) {
            "preferences"
        } else if self.front.temperature != other.front.temperature {
            "sampling temperatures"
        } else if rows(self) != rows(other) {
            "test rows or sampling seeds"
        } else {
            return Ok(());
        };
        Err(AggregateError::Differ { path: other.path.clone(), first: self.path.clone(), what })
    }

    /// The methods at α = 0, each followed by that of a chosen α where one was searched.
    fn names(&self) -> Vec<String> {
        let at_zero = self.front.methods.iter().filter(|method| method.alpha == 0.0);
        let each = at_zero.flat_map(|method| {
            let name = method.method.clone();
            let searched = self.front.selected.iter().any(|selected| selected.method == name);
            let chosen = searched.then(|| format!("{name}{CHOSEN}"));
            std::iter::once(name).chain(chosen)
        });
        each.collect()
    }

    /// A method by its name here; a chosen α is this evaluation's own choice.
    fn method(&self, name: &str) -> Option<&MethodFront> {
        let named = |name: &str| self.front.methods.iter().find(|method| method.method == name);
        let Some(base) = name.strip_suffix(CHOSEN) else { return named(name) };
        let best = self.front.selected.iter().find(|selected| selected.method == base)?.best;
        if best == 0.0 { named(base) } else { named(&format!("{base}, α = {best}")) }
    }
}

/// The regions of a table, with their names.
const REGIONS: [(&str, Region); 3] =
    [("corners", Region::Corner), ("edges", Region::Edge), ("interior", Region::Interior)];

fn row(all: &[Evaluated], name: String, baseline: &str) -> Row {
    let fronts: Vec<&MethodFront> = all.iter().filter_map(|one| one.method(&name)).collect();
    let spread = |value: &dyn Fn(&MethodFront) -> Option<f64>| {
        let values: Option<Vec<f64>> = fronts.iter().map(|front| value(front)).collect();
        values.and_then(|values| Spread::of(&values))
    };
    let of_region = |region: Region| {
        move |front: &MethodFront| match region {
            Region::Corner => front.regions.corners,
            Region::Edge => front.regions.edges,
            Region::Interior => front.regions.interior,
        }
    };
    let regions = REGIONS.iter();
    let regions =
        regions.filter_map(|(title, region)| Some((*title, spread(&of_region(*region))?)));
    let gain = |inside: &dyn Fn(&[f64]) -> bool| -> Option<Interval> {
        let differences: Option<Vec<Vec<f64>>> =
            all.iter().map(|one| differences(one, &name, baseline, inside)).collect();
        bootstrap::crossed(&differences?, bootstrap::RESAMPLES, 1)
    };
    let mut gains = BTreeMap::new();
    if name != baseline {
        gains.extend(gain(&|_| true).map(|interval| ("all", interval)));
        for (title, region) in REGIONS {
            gains.extend(gain(&|mu| Region::of(mu) == region).map(|interval| (title, interval)));
        }
    }
    Row {
        testing: spread(&|front| Some(front.metrics.inner_product)),
        hypervolume: spread(&|front| Some(front.metrics.hypervolume)),
        oracle_gap: spread(&|front| front.oracle_gap),
        regions: regions.collect(),
        method: name,
        gains,
    }
}

/// Gain of each answer of a method over the baseline's, mean over the preferences that are
/// `inside`; one number per answer, in the same order for all evaluations.
fn differences(
    one: &Evaluated,
    name: &str,
    baseline: &str,
    inside: &dyn Fn(&[f64]) -> bool,
) -> Option<Vec<f64>> {
    let (method, baseline) = (one.method(name)?, one.method(baseline)?);
    let (own, base) = (one.values.get(&method.method)?, one.values.get(&baseline.method)?);
    let points: Vec<usize> =
        (0..own.len()).filter(|&i| inside(&method.points[i].preference)).collect();
    let first = points.first()?;
    let difference = |of: &(String, String)| {
        let each = points.iter().map(|&i| Some(own[i].get(of)? - base[i].get(of)?));
        let each: Option<Vec<f64>> = each.collect();
        each.map(|each| mean(&each))
    };
    own[*first].keys().map(difference).collect()
}

impl fmt::Display for Aggregate {
    /// A Markdown table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seeds, answers, baseline, rows, left_out } = self;
        writeln!(
            f,
            "{seeds} training seeds, {answers} answers a point; rewards in σ, mean ± standard \
                     deviation over the seeds; gains over {baseline} with 95 % intervals over seeds \
                     and prompts\n"
        )?;
        let titles =
            ["method", "testing", "corners", "edges", "interior", "hypervolume", "oracle gap"];
        writeln!(f, "| {} | gain | gain inside | gain at corners |", titles.join(" | "))?;
        writeln!(f, "|{}", "---|".repeat(titles.len() + 3))?;
        let shown = |spread: Option<&Spread>| {
            spread.map_or("–".to_owned(), |s| format!("{:.3} ± {:.3}", s.mean, s.deviation))
        };
        let interval = |interval: Option<&Interval>| {
            interval.map_or("–".to_owned(), |i| {
                format!("{:+.3} ({:+.3} to {:+.3})", i.mean, i.low, i.high)
            })
        };
        for row in rows {
            let region = |title: &str| shown(row.regions.get(title));
            let cells = [
                row.method.clone(),
                shown(row.testing.as_ref()),
                region("corners"),
                region("edges"),
                region("interior"),
                shown(row.hypervolume.as_ref()),
                shown(row.oracle_gap.as_ref()),
                interval(row.gains.get("all")),
                interval(row.gains.get("interior")),
                interval(row.gains.get("corners")),
            ];
            writeln!(f, "| {} |", cells.join(" | "))?;
        }
        if !left_out.is_empty() {
            writeln!(f, "\nnot in every evaluation: {}", left_out.join(", "))?;
        }
        Ok(())
    }
}
