//! Teaching a reward model: a head on frozen features of an encoder or a causal language model.
//!
//! rows → texts → hidden states → head. What is taught is data ([`Lesson`]): preferences train a
//! scalar on a text's pooled state by `−log σ(r(better) − r(worse))` (Bradley and Terry 1952; Ouyang
//! et al. 2022, eq. 1), marked errors train a label of every segment, on its last token or on the
//! mean of its tokens, by cross entropy (Wu et al. 2023). What comes out is a checkpoint as
//! transformers writes it, for the rewards `sequence-classifier` and `span-classifier`.

mod checkpoint;
mod error;
mod features;
mod learner;
pub mod lesson;
mod settings;

use std::path::Path;

use self::{
    features::Reader,
    learner::Learner,
    lesson::{Goal, Lesson},
};
use super::{
    classifier::Parts,
    head::{HeadKind, HeadNames},
    layers::model_type,
    neural::Before,
};
use crate::{data::split::split, metrics::progress};

pub use self::{error::FitError, learner::Fit, settings::Settings};

/// Fits a head on the network in `model` and writes network and head as the checkpoint `out`.
pub fn fit(lesson: Lesson, model: &Path, out: &Path, settings: &Settings) -> Result<Fit, FitError> {
    let Lesson { goal, rows } = lesson;
    if out.canonicalize().is_ok_and(|out| model.canonicalize().is_ok_and(|model| out == model)) {
        return Err(FitError::Onto(out.to_owned()));
    }
    let before = Before::new(settings.template.as_deref())?;
    let count = rows.len();
    if count < 10 {
        return Err(FitError::Rows(count));
    }
    let kept = settings.test_share;
    let split = split(rows, |row| &row.id, &[1.0 - 2.0 * kept, kept, kept], settings.seed);
    let split = split.map_err(|_| FitError::Share(kept))?;
    if split.iter().any(Vec::is_empty) {
        return Err(FitError::Rows(count));
    }
    let parts = Parts::open(model, None)?;
    checkpoint::check(model)?;
    let total = split.iter().flatten().map(|row| row.samples.len() as u64).sum();
    let reader = Reader {
        parts: &parts,
        model,
        before,
        reading: settings.reading,
        bar: progress("features", total, "texts"),
    };
    let mut read = Vec::new();
    for rows in split {
        let features = reader.read(&goal, &rows)?;
        if features.count() == 0 {
            return Err(FitError::Rows(count));
        }
        read.push(features);
    }
    reader.bar.finish();
    let [train, validation, test] = read.as_slice() else { return Err(FitError::Rows(count)) };
    let both = [true, false].iter().all(|label| train.wrong.contains(label));
    if let Goal::Error { name, .. } = goal
        && !both
    {
        return Err(FitError::OneLabel(name));
    }
    let kind = match goal {
        Goal::Preference => HeadKind::Sequence,
        Goal::Error { .. } => HeadKind::Tokens,
    };
    let names = HeadNames::of(model_type(&parts.config), kind);
    let labels: &[&str] = match goal {
        Goal::Preference => &["reward"],
        Goal::Error { name, .. } => &["fine", name],
    };
    let learner = Learner::new(&names, train, labels.len(), settings.seed)?;
    let (epochs, loss) = learner.learn(train, validation, settings)?;
    if epochs == 0 {
        return Err(FitError::Nothing { epochs: settings.epochs, validation: validation.count() });
    }
    let fit = Fit { trained: train.count(), epochs, loss, ..learner.test(test)? };
    checkpoint::write(&parts.config, kind, labels, learner.tensors()?, model, out)?;
    Ok(fit)
}
