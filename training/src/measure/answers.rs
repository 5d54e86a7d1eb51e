//! The answers of an evaluation on disk: one JSON line each, appended point by point, and the table
//! made of them.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

use ladle::preference::{Coefficients, ModelKey};
use serde::{Deserialize, Serialize};

use crate::{
    checkpoint::{CheckpointError, write_atomically},
    setup::Prompt,
};

type Result<T> = std::result::Result<T, CheckpointError>;

/// One answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answer {
    /// Digest of the soup.
    pub soup: String,
    /// c over the backbones.
    pub coefficients: Vec<f64>,
    /// Seed of the sampling.
    pub seed: u64,
    /// Id of the prompt.
    pub row: String,
    /// Its text.
    pub response: String,
    /// Whether it ended by itself.
    pub finished: bool,
    /// One an objective.
    pub rewards: Vec<f64>,
}

/// A model: digest of the soup, and its identity within it.
type Key = (String, ModelKey);

/// The model of `coefficients` over the backbones, of which θ_sft's follows: Σc = 1.
fn model(soup: &str, coefficients: &[f64]) -> Key {
    let sft = 1.0 - coefficients.iter().sum::<f64>();
    (soup.to_owned(), ModelKey::of(&Coefficients { backbones: coefficients.to_vec(), sft }))
}

/// All answers so far.
pub struct Book {
    path: PathBuf,
    file: File,
    known: BTreeMap<Key, BTreeMap<(String, u64), Answer>>,
}

impl Book {
    /// Reads the whole lines of the file; a line that a kill cut short is dropped.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |error| CheckpointError::io(path)(error);
        let bytes = match fs::read(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            read => read.map_err(io)?,
        };
        let end = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
        let whole = &bytes[..end];
        write_atomically(path, whole)?;
        let file = OpenOptions::new().append(true).open(path).map_err(io)?;
        let mut book = Self { path: path.to_owned(), file, known: BTreeMap::new() };
        for (index, line) in whole.split_inclusive(|&byte| byte == b'\n').enumerate() {
            let answer: Answer = serde_json::from_slice(line).map_err(|error| {
                let reason = format!("line {}: {error}", index + 1);
                CheckpointError::Format { path: path.to_owned(), reason }
            })?;
            book.insert(answer);
        }
        Ok(book)
    }

    fn insert(&mut self, answer: Answer) {
        let key = model(&answer.soup, &answer.coefficients);
        self.known.entry(key).or_default().insert((answer.row.clone(), answer.seed), answer);
    }

    /// Appends the answers of one point, on disk when this returns.
    pub fn add(&mut self, answers: Vec<Answer>) -> Result<()> {
        let mut text = String::new();
        for answer in answers {
            let line = serde_json::to_string(&answer).map_err(|error| CheckpointError::Format {
                path: self.path.clone(),
                reason: error.to_string(),
            })?;
            text.push_str(&line);
            text.push('\n');
            self.insert(answer);
        }
        let io = |error| CheckpointError::io(&self.path)(error);
        self.file.write_all(text.as_bytes()).map_err(io)?;
        self.file.sync_data().map_err(io)
    }

    /// What has no answer yet.
    pub fn missing<'p>(
        &self,
        soup: &str,
        coefficients: &[f64],
        prompts: &[&'p Prompt],
        seeds: &[u64],
    ) -> Vec<(&'p Prompt, u64)> {
        let known = self.known.get(&model(soup, coefficients));
        let all = prompts.iter().flat_map(|p| seeds.iter().map(move |seed| (*p, *seed)));
        all.filter(|(prompt, seed)| {
            known.is_none_or(|known| !known.contains_key(&(prompt.example.id.clone(), *seed)))
        })
        .collect()
    }

    /// The answers of one point, prompt by prompt.
    pub fn answers(
        &self,
        soup: &str,
        coefficients: &[f64],
        prompts: &[&Prompt],
        seeds: &[u64],
    ) -> Vec<&Answer> {
        let Some(known) = self.known.get(&model(soup, coefficients)) else { return Vec::new() };
        let all = prompts
            .iter()
            .flat_map(|p| seeds.iter().map(move |seed| (p.example.id.clone(), *seed)));
        all.filter_map(|key| known.get(&key)).collect()
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
        cells.extend(answer.rewards.iter().map(f64::to_string));
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
            seed: 1,
            row: "row".into(),
            response: "naïve".into(),
            finished: true,
            // Without `float_roundtrip` it is read as its neighbour.
            rewards: vec![51.248178375505404],
        };
        Book::open(&path).unwrap().add(vec![answer]).unwrap();
        let whole = fs::read(&path).unwrap();
        // Inside a character.
        let inside = whole.iter().position(|byte| !byte.is_ascii()).unwrap() + 1;
        fs::write(&path, [&whole[..], &whole[..inside]].concat()).unwrap();
        let book = Book::open(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), whole);
        let read = book.known.values().flat_map(BTreeMap::values).next().unwrap();
        assert_eq!(read.rewards, [51.248178375505404]);
    }
}
