//! Hidden states of a reward model's network for the rows of a lesson.

use std::path::Path;

use candle_core::{Device, Tensor};
use indicatif::ProgressBar;
use tokenizers::EncodeInput;

use super::{
    error::FitError,
    lesson::{Goal, LessonRow, has_error},
};
use crate::rewards::{
    Sample,
    classifier::{Parts, ResponseTokens},
    neural::{Before, Reading},
};

/// Texts whose states of all tokens are in memory at once.
const PART: usize = 64;

/// Hidden states of rows: `[items, sides, hidden]`, where an item is a pair of
/// two sides (the better one first) or a segment of one.
pub(super) struct Features {
    pub states: Tensor,
    /// For segments: whether each has the error.
    pub wrong: Vec<bool>,
}

impl Features {
    /// Pairs or segments.
    pub fn count(&self) -> usize {
        self.states.dims()[0]
    }

    /// Share of the segments that have the error.
    pub fn wrong_share(&self) -> f64 {
        let wrong = self.wrong.iter().filter(|wrong| **wrong).count();
        wrong as f64 / self.wrong.len().max(1) as f64
    }
}

/// Computes [`Features`] of rows.
pub(super) struct Reader<'a> {
    /// The network and its tokenizer.
    pub parts: &'a Parts,
    /// Their directory.
    pub model: &'a Path,
    /// Text before a response.
    pub before: Before,
    /// Tokens of a segment that are read.
    pub reading: Reading,
    /// Counts the texts.
    pub bar: ProgressBar,
}

impl Reader<'_> {
    /// Features of rows for the given goal.
    pub fn read(&self, goal: &Goal, rows: &[LessonRow]) -> Result<Features, FitError> {
        let Self { parts, model, before, reading, bar } = self;
        let failed = |reason| FitError::Features { path: model.to_path_buf(), reason };
        let samples: Vec<(&LessonRow, &Sample)> =
            rows.iter().flat_map(|row| row.samples.iter().map(move |s| (row, s))).collect();
        let mut texts = Vec::with_capacity(samples.len());
        for &(row, sample) in &samples {
            let text = before.text(sample);
            let text = text.map_err(|reason| FitError::Text { row: row.id.clone(), reason })?;
            texts.push((text, sample.response.as_str()));
        }
        let inputs = texts.iter().map(|(text, response)| EncodeInput::from((&**text, *response)));
        let encodings = parts.encode(inputs).map_err(failed)?;
        let network = &parts.network;
        let Goal::Error { segment, .. } = goal else {
            let states = parts
                .run(&encodings, |states, batch| {
                    bar.inc(batch.rows.len() as u64);
                    network.pooled(states, batch)?.to_vec2::<f32>()
                })
                .map_err(failed)?;
            let flat = states.concat();
            let shape = (samples.len() / 2, 2, network.hidden);
            let states = Tensor::from_vec(flat, shape, &Device::Cpu)?;
            return Ok(Features { states, wrong: Vec::new() });
        };
        let (mut flat, mut wrong) = (Vec::<f32>::new(), Vec::new());
        for (samples, encodings) in samples.chunks(PART).zip(encodings.chunks(PART)) {
            let all = parts.run(encodings, |states, batch| {
                bar.inc(batch.rows.len() as u64);
                states.to_vec3::<f32>()
            });
            let all = all.map_err(failed)?;
            for (((row, sample), encoding), states) in samples.iter().zip(encodings).zip(&all) {
                let tokens = ResponseTokens::of(encoding);
                for part in segment.of(&sample.response) {
                    // A segment that was cut off, or without a token, is left out.
                    let places = tokens.within(&part).unwrap_or_default();
                    let places = tokens.places.get(places).unwrap_or_default().iter();
                    let own: Vec<&[f32]> =
                        places.filter_map(|&at| states.get(at).map(Vec::as_slice)).collect();
                    let Some(state) = reading.of(&own) else { continue };
                    flat.extend(state);
                    wrong.push(has_error(&part, &row.marked));
                }
            }
        }
        let states = Tensor::from_vec(flat, (wrong.len(), 1, network.hidden), &Device::Cpu)?;
        Ok(Features { states, wrong })
    }
}
