//! The answers of an evaluation on disk: one JSON line each, appended point by point, and the table
//! made of them.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Write},
    marker::PhantomData,
    path::{Path, PathBuf},
};

use ladle::{
    engine::Combine,
    preference::{Coefficients, ModelKey},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{error::EvaluateError, methods::Model};
use crate::{
    checkpoint::{CheckpointError, write_atomically},
    setup::Prompt,
};

type Result<T> = std::result::Result<T, CheckpointError>;

/// Part of the data that a prompt belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Rows that choices are made on.
    Validation,
    /// Rows that results are reported on.
    Test,
}

/// One answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answer {
    /// Digest of the soup.
    pub soup: String,
    /// c over the backbones, or the weights of their logits.
    pub coefficients: Vec<f64>,
    /// Whether logits were combined instead of weights.
    pub logits: bool,
    /// Words behind the prompt, of a policy that is told the rewards wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told: Option<String>,
    /// Seed of the sampling.
    pub seed: u64,
    /// Part of the data that the prompt belongs to.
    pub part: Part,
    /// Id of the prompt.
    pub row: String,
    /// Text of the answer.
    pub response: String,
    /// Token ids, end of sequence included.
    pub tokens: Vec<u32>,
    /// log π of the tokens under the model that gave them at T = 1, nats.
    pub log_prob: f64,
    /// Whether it ended before the limit on its length.
    pub finished: bool,
    /// One per objective; `None` where the reward does not judge the prompt's type of task.
    pub rewards: Vec<Option<f64>>,
}

/// A model: digest of the soup, whether logits are combined, the identity of the weights, and what
/// its prompts tell.
type Key = (String, bool, ModelKey, Option<String>);

/// The model of `weights` over the backbones, of which θ_sft's follows: Σ = 1.
fn key(soup: &str, logits: bool, weights: &[f64], told: &Option<String>) -> Key {
    let sft = 1.0 - weights.iter().sum::<f64>();
    let weights = Coefficients { backbones: weights.to_vec(), sft };
    (soup.to_owned(), logits, ModelKey::of(&weights), told.clone())
}

/// The weights that tell a model of a soup from others, and whether they are those of logits.
pub fn weights(model: &Model) -> (bool, &[f64]) {
    match &model.combine {
        Combine::Weights => {
            let Coefficients { backbones, .. } = &model.coefficients;
            (false, backbones)
        }
        Combine::Logits(weights) => (true, weights),
    }
}

/// A request to one model of a soup: prompts of one part under every seed.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// Digest of the soup.
    pub soup: &'a str,
    pub model: &'a Model,
    /// Part of the data that the prompts belong to.
    pub part: Part,
    pub prompts: &'a [&'a Prompt],
    /// Seeds of the sampling.
    pub seeds: &'a [u64],
}

impl<'a> Asked<'a> {
    fn key(&self) -> Key {
        let (logits, weights) = weights(self.model);
        key(self.soup, logits, weights, &self.model.told)
    }

    /// Why there is no answer to a prompt.
    pub fn failed(&self, prompt: &Prompt, reason: String) -> EvaluateError {
        let (row, coefficients) = (prompt.example.id.clone(), weights(self.model).1.to_vec());
        EvaluateError::Answer { row, coefficients, reason }
    }

    /// Every prompt with every seed, prompt by prompt.
    fn all(self) -> impl Iterator<Item = (&'a Prompt, u64)> {
        let Self { prompts, seeds, .. } = self;
        prompts.iter().flat_map(move |prompt| seeds.iter().map(move |seed| (*prompt, *seed)))
    }
}

/// The answers of an evaluation so far, kept in a file.
pub struct Book {
    lines: Lines<Answer>,
    known: BTreeMap<Key, BTreeMap<(Part, String, u64), Answer>>,
}

impl Book {
    /// Reads the complete lines of the file; a line that a killed process left incomplete is
    /// dropped.
    pub fn open(path: &Path) -> Result<Self> {
        let (lines, answers) = Lines::open(path)?;
        let mut book = Self { lines, known: BTreeMap::new() };
        answers.into_iter().for_each(|answer| book.insert(answer));
        Ok(book)
    }

    fn insert(&mut self, answer: Answer) {
        let key = key(&answer.soup, answer.logits, &answer.coefficients, &answer.told);
        let of = (answer.part, answer.row.clone(), answer.seed);
        self.known.entry(key).or_default().insert(of, answer);
    }

    /// Appends the answers of one point, on disk when this returns.
    pub fn add(&mut self, answers: Vec<Answer>) -> Result<()> {
        self.lines.append(&answers)?;
        answers.into_iter().for_each(|answer| self.insert(answer));
        Ok(())
    }

    /// The prompts and seeds without an answer.
    pub fn missing<'a>(&self, asked: &Asked<'a>) -> Vec<(&'a Prompt, u64)> {
        let known = self.known.get(&asked.key());
        let answered = |(prompt, seed): &(&Prompt, u64)| {
            let of = (asked.part, prompt.example.id.clone(), *seed);
            known.is_some_and(|known| known.contains_key(&of))
        };
        asked.all().filter(|of| !answered(of)).collect()
    }

    /// The answers of one point, prompt by prompt.
    pub fn answers(&self, asked: &Asked<'_>) -> Vec<&Answer> {
        let Some(known) = self.known.get(&asked.key()) else { return Vec::new() };
        let all = asked.all().map(|(p, seed)| (asked.part, p.example.id.clone(), seed));
        all.filter_map(|of| known.get(&of)).collect()
    }
}

/// A file of JSON lines that is appended to and read whole.
pub struct Lines<T> {
    path: PathBuf,
    file: File,
    kind: PhantomData<T>,
}

impl<T: Serialize + DeserializeOwned> Lines<T> {
    /// Opens a file and reads its complete lines; one that a killed process left incomplete is
    /// dropped.
    pub fn open(path: &Path) -> Result<(Self, Vec<T>)> {
        let io = |error| CheckpointError::io(path)(error);
        let bytes = match fs::read(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            read => read.map_err(io)?,
        };
        let end = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
        let whole = &bytes[..end];
        write_atomically(path, whole)?;
        let file = OpenOptions::new().append(true).open(path).map_err(io)?;
        let lines = whole.split_inclusive(|&byte| byte == b'\n').enumerate();
        let read = lines.map(|(index, line)| {
            serde_json::from_slice(line).map_err(|error| {
                let reason = format!("line {}: {error}", index + 1);
                CheckpointError::Format { path: path.to_owned(), reason }
            })
        });
        let read = read.collect::<Result<Vec<T>>>()?;
        Ok((Self { path: path.to_owned(), file, kind: PhantomData }, read))
    }

    /// Appends items, on disk when this returns.
    pub fn append(&mut self, items: &[T]) -> Result<()> {
        let mut text = String::new();
        for item in items {
            let line = serde_json::to_string(item).map_err(|error| CheckpointError::Format {
                path: self.path.clone(),
                reason: error.to_string(),
            })?;
            text.push_str(&line);
            text.push('\n');
        }
        let io = |error| CheckpointError::io(&self.path)(error);
        self.file.write_all(text.as_bytes()).map_err(io)?;
        self.file.sync_data().map_err(io)
    }
}

/// `samples.csv`.
pub struct Table {
    /// The file so far.
    pub text: String,
}

impl Table {
    /// The heading, for the given objectives.
    pub fn new(objectives: &[String]) -> Self {
        let columns = |prefix: &str| -> Vec<String> {
            objectives.iter().map(|name| format!("{prefix}:{name}")).collect()
        };
        let (weights, rewards) = (columns("mu").join(","), columns("reward").join(","));
        Self { text: format!("method,{weights},row,seed,finished,{rewards},response\n") }
    }

    /// Adds an answer to a preference.
    pub fn row(&mut self, method: &str, weights: &[f64], answer: &Answer) {
        let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
        let mut cells = vec![quoted(method)];
        cells.extend(weights.iter().map(f64::to_string));
        cells.extend([quoted(&answer.row), answer.seed.to_string(), answer.finished.to_string()]);
        let reward = |reward: &Option<f64>| reward.map_or(String::new(), |r| r.to_string());
        cells.extend(answer.rewards.iter().map(reward));
        cells.push(quoted(&answer.response));
        self.text.push_str(&cells.join(","));
        self.text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_to_the_bit_and_a_cut_line_costs_itself_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("answers.jsonl");
        let answer = Answer {
            soup: "digest".into(),
            coefficients: vec![1.0],
            logits: false,
            told: None,
            seed: 1,
            part: Part::Test,
            row: "row".into(),
            response: "naïve".into(),
            tokens: vec![7],
            log_prob: -0.1,
            finished: true,
            // Without `float_roundtrip` it is read as its neighbour.
            rewards: vec![Some(51.248178375505404), None],
        };
        Book::open(&path).unwrap().add(vec![answer]).unwrap();
        let whole = fs::read(&path).unwrap();
        // Inside a character.
        let inside = whole.iter().position(|byte| !byte.is_ascii()).unwrap() + 1;
        fs::write(&path, [&whole[..], &whole[..inside]].concat()).unwrap();
        let book = Book::open(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), whole);
        let read = book.known.values().flat_map(BTreeMap::values).next().unwrap();
        assert_eq!(read.rewards, [Some(51.248178375505404), None]);
    }
}
