//! Training data of a reward model: rows with a better and a worse response, or with marked errors.

use std::{ops::Range, path::Path};

use crate::data::{
    DataError, Pair, hh_rlhf,
    qa_feedback::{self, ErrorKind, Feedback},
    rows::OnMalformed,
    tldr,
};
use crate::rewards::{Judges, Sample, neural::SegmentBy};

/// Goal of a reward model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goal {
    /// The better of two responses to one prompt: one scalar, by Bradley and Terry. A row has two
    /// samples, the better one first.
    Preference,
    /// Segments with an error: a label a segment. A row has one sample.
    Error {
        /// Label of the error.
        name: &'static str,
        /// Segmentation of responses.
        segment: SegmentBy,
    },
}

/// One row of a lesson. Rows of one id stay together when some are kept for testing.
#[derive(Debug, Clone, PartialEq)]
pub struct LessonRow {
    /// Name within the data set.
    pub id: String,
    /// The samples that the model reads.
    pub samples: Vec<Sample>,
    /// Marked errors, byte ranges in the response.
    pub marked: Vec<Range<usize>>,
}

/// A goal with its rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Lesson {
    /// The goal.
    pub goal: Goal,
    /// Rows, in the order of the file.
    pub rows: Vec<LessonRow>,
}

/// The lessons that data sets hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Source {
    /// hh-rlhf dialogues: the chosen response.
    HhRlhf,
    /// TL;DR comparisons: the chosen summary.
    Tldr,
    /// QA-Feedback: the better of two answers, as a whole.
    QaPreference,
    /// QA-Feedback: the corrected answer over one that misses information.
    QaCompleteness,
    /// QA-Feedback: irrelevant, repeated or incoherent sub-sentences.
    QaRelevance,
    /// QA-Feedback: sentences that the passages contradict or do not hold.
    QaFactuality,
}

impl Source {
    /// Reads a file of the data set. Malformed rows are left out.
    pub fn read(self, path: &Path) -> Result<Lesson, DataError> {
        let skip = OnMalformed::Skip;
        let feedback = |rows: fn(Feedback) -> Vec<LessonRow>| {
            let read = qa_feedback::read(path, skip)?;
            Ok::<_, DataError>(read.rows.into_iter().flat_map(rows).collect())
        };
        let preference = |rows| Lesson { goal: Goal::Preference, rows };
        let error = |name, segment, rows| Lesson { goal: Goal::Error { name, segment }, rows };
        Ok(match self {
            Self::HhRlhf => Lesson::of_pairs(hh_rlhf::read(path, skip)?.rows),
            Self::Tldr => Lesson::of_pairs(tldr::read_comparisons(path, skip)?.rows),
            Self::QaPreference => preference(feedback(preferences)?),
            Self::QaCompleteness => preference(feedback(completeness)?),
            Self::QaRelevance => {
                let rows = feedback(|row| marked(row, ErrorKind::Relevance))?;
                error("irrelevant", SegmentBy::SubSentence, rows)
            }
            Self::QaFactuality => {
                let rows = feedback(|row| marked(row, ErrorKind::Factuality))?;
                error("untrue", SegmentBy::Sentence, rows)
            }
        })
    }
}

impl Lesson {
    /// Preferences; the prompt is the last turn of the user.
    pub fn of_pairs(pairs: Vec<Pair>) -> Self {
        let row = |pair: Pair| {
            let prompt = pair.messages.last().map_or("", |message| message.content.as_str());
            let sample = |response: &str| Sample {
                prompt: prompt.to_owned(),
                response: response.to_owned(),
                finished: true,
                references: Vec::new(),
                fields: pair.fields.clone(),
                judges: Judges::default(),
            };
            let samples = vec![sample(&pair.chosen), sample(&pair.rejected)];
            LessonRow { id: pair.id.clone(), samples, marked: Vec::new() }
        };
        Self { goal: Goal::Preference, rows: pairs.into_iter().map(row).collect() }
    }
}

fn answer(row: &Feedback, response: &str) -> Sample {
    Sample {
        prompt: row.example.prompt().to_owned(),
        response: response.to_owned(),
        finished: true,
        references: row.example.references.clone(),
        fields: row.example.fields.clone(),
        judges: Judges::default(),
    }
}

fn pair(row: &Feedback, better: &str, worse: &str) -> LessonRow {
    let samples = vec![answer(row, better), answer(row, worse)];
    LessonRow { id: row.example.id.clone(), samples, marked: Vec::new() }
}

fn preferences(row: Feedback) -> Vec<LessonRow> {
    let one = |&(better, worse): &(usize, usize)| {
        Some(pair(&row, row.predictions.get(better)?, row.predictions.get(worse)?))
    };
    row.preferences.iter().filter_map(one).collect()
}

fn completeness(row: Feedback) -> Vec<LessonRow> {
    let [first, ..] = &row.predictions;
    if row.missing == 0 || row.corrected.is_empty() || row.corrected == *first {
        return Vec::new();
    }
    vec![pair(&row, &row.corrected, first)]
}

fn marked(row: Feedback, kind: ErrorKind) -> Vec<LessonRow> {
    let [first, ..] = &row.predictions;
    let samples = vec![answer(&row, first)];
    let errors = row.errors.iter().filter(|error| error.kind == kind);
    let marked = errors.map(|error| error.bytes.clone()).collect();
    vec![LessonRow { id: row.example.id.clone(), samples, marked }]
}

/// Whether a segment has a marked error: they share at least half of the shorter of the two, so
/// that a mark that is too long by a character or two does not mark a neighbour.
pub fn has_error(segment: &Range<usize>, marked: &[Range<usize>]) -> bool {
    marked.iter().any(|mark| {
        let shared = segment.end.min(mark.end).saturating_sub(segment.start.max(mark.start));
        shared > 0 && 2 * shared >= segment.len().min(mark.len())
    })
}
