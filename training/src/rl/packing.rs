//! Sequences packed for one forward: rows of all sequences one after another, no padding.

use std::{convert::Infallible, ops::Range, sync::Arc};

use ladle::kernels::{Batch, RowCoefficients, Segment};

use crate::tape::{KeysAndValues, Stored};

/// A prompt and the response whose tokens are scored; neither is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Prompt tokens.
    pub prompt: Vec<u32>,
    /// Response tokens as they were sampled (or written), end of sequence included.
    pub response: Vec<u32>,
    /// First row that the policy's adapters act on, where they are active on the answer only.
    pub active_from: Option<usize>,
}

impl Sequence {
    /// Rows that a forward over it computes: every token but the last predicts one. An encoder–decoder
    /// model has one more, of the token that answers begin after.
    pub fn rows(&self) -> usize {
        (self.prompt.len() + self.response.len()).saturating_sub(1)
    }

    /// Prompt tokens whose rows other responses can share: all but the last, whose row predicts.
    pub fn shareable(&self) -> usize {
        self.prompt.len().saturating_sub(1)
    }
}

/// A batch whose outputs predict the response tokens.
#[derive(Debug, Clone, Default)]
pub struct Packed {
    /// Input of the decoder; `outputs` are the rows before each response token.
    pub batch: Batch,
    /// Rows of prompts that are not in the batch.
    pub stored: Stored,
    /// Response tokens of all sequences, one per output row.
    pub targets: Vec<u32>,
    /// Output rows of each sequence.
    pub spans: Vec<Range<usize>>,
}

/// Packs all rows of the sequences, in the given order. Consecutive ones with the same prompt share
/// its rows: a segment without outputs that each response continues (`cached`).
pub fn pack(sequences: &[Sequence]) -> Packed {
    match pack_after(sequences, |_| Ok::<_, Infallible>(None)) {
        Ok(packed) => packed,
        Err(never) => match never {},
    }
}

/// [`pack`] without the rows of a prompt that the policy's adapters do not act on, where `stored`
/// has the keys and values of those tokens.
pub fn pack_after<E>(
    sequences: &[Sequence],
    mut stored: impl FnMut(&[u32]) -> Result<Option<Arc<KeysAndValues>>, E>,
) -> Result<Packed, E> {
    let mut packed = Packed::default();
    let mut active = Vec::new();
    let together =
        |a: &Sequence, b: &Sequence| a.prompt == b.prompt && a.active_from == b.active_from;
    for group in sequences.chunk_by(together) {
        let Sequence { prompt, active_from, .. } = &group[0];
        let constant = active_from.unwrap_or(0).min(group[0].shareable());
        let given = if constant > 0 { stored(&prompt[..constant])? } else { None };
        let before = given.as_ref().map_or(0, |_| constant);
        let shared = if group.len() > 1 { group[0].shareable() } else { before };
        if shared > 0 {
            let stored = given.is_some().then_some(packed.stored.given.len() as u32);
            let blocks = stored.into_iter().collect();
            segment(&mut packed.batch, before, prompt[before..shared].iter().copied(), blocks);
            packed.stored.given.extend(given);
            active.resize(packed.batch.tokens.len(), *active_from);
        }
        for sequence in group {
            let Sequence { prompt, response, active_from } = sequence;
            let tokens = prompt.iter().chain(response).copied().take(sequence.rows());
            segment(&mut packed.batch, shared, tokens.skip(shared), Vec::new());
            active.resize(packed.batch.tokens.len(), *active_from);
            packed.answer(response);
        }
    }
    packed.batch.coefficients = coefficients(&packed.batch.positions, &active);
    Ok(packed)
}

/// Packs sequences for an encoder–decoder model whose answers begin after token `start`: prompts are
/// encoded, consecutive equal ones once; the rows are those of the answers. Adapters are active on
/// every row.
pub fn pack_encoded(sequences: &[Sequence], start: u32) -> Packed {
    let (mut packed, mut prompts) = (Packed::default(), Batch::default());
    let mut numbers = 0..;
    let mut block = || numbers.by_ref().take(1).collect::<Vec<u32>>();
    for group in sequences.chunk_by(|a, b| a.prompt == b.prompt) {
        let (prompt, encoded) = (&group[0].prompt, block());
        segment(&mut prompts, 0, prompt.iter().copied(), encoded.clone());
        for Sequence { response, .. } in group {
            let tokens = std::iter::once(&start).chain(response).copied().take(response.len());
            let rows = segment(&mut packed.batch, 0, tokens, block());
            packed.batch.encoded.push(Segment {
                rows,
                cached: prompt.len(),
                blocks: encoded.clone(),
            });
            packed.answer(response);
        }
    }
    packed.batch.prompts = Some(Box::new(prompts));
    packed
}

/// The coefficient of the policy's adapters in rows at `positions` of sequences that they are active
/// on from `active` on: 0 before, 1 from there on (`docs/algorithms.md` §2.4). None where they are
/// active on every row of all sequences.
pub fn coefficients(positions: &[u32], active: &[Option<usize>]) -> Option<RowCoefficients> {
    active.iter().any(Option::is_some).then(|| {
        let rows = positions.iter().zip(active);
        let on = |(&position, from): (&u32, &Option<usize>)| position as usize >= from.unwrap_or(0);
        RowCoefficients { terms: 1, values: rows.map(|row| f32::from(u8::from(on(row)))).collect() }
    })
}

impl Packed {
    /// Makes the last rows of the batch those that predict a response.
    fn answer(&mut self, response: &[u32]) {
        let end = self.batch.tokens.len();
        self.batch.outputs.extend(end - response.len()..end);
        let first = self.targets.len();
        self.targets.extend(response);
        self.spans.push(first..self.targets.len());
    }
}

/// Adds the rows of a segment after `cached` tokens of its sequence, and says which they are. `blocks`
/// are where its keys and values are, or, of a decoder in training, the number of the stored rows that it
/// continues.
pub(super) fn segment(
    batch: &mut Batch,
    cached: usize,
    tokens: impl Iterator<Item = u32>,
    blocks: Vec<u32>,
) -> Range<usize> {
    let start = batch.tokens.len();
    batch.tokens.extend(tokens);
    let rows = start..batch.tokens.len();
    batch.positions.extend((cached..).map(|position| position as u32).take(rows.len()));
    batch.segments.push(Segment { rows: rows.clone(), cached, blocks });
    rows
}

/// Splits `0..sequences.len()` into runs of at most `budget` rows when packed; a sequence longer than
/// that runs alone.
pub fn micro_batches(sequences: &[Sequence], budget: usize) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut rows = 0;
    for (index, sequence) in sequences.iter().enumerate() {
        let whole = sequence.rows();
        let before = index.checked_sub(1).and_then(|before| sequences.get(before));
        let shares = before.is_some_and(|before| before.prompt == sequence.prompt);
        let added = if shares { whole - sequence.shareable() } else { whole };
        match runs.last_mut() {
            Some(run) if rows + added <= budget => {
                run.end = index + 1;
                rows += added;
            }
            _ => {
                runs.push(index..index + 1);
                rows = whole;
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(prompt: &[u32], response: &[u32]) -> Sequence {
        Sequence { prompt: prompt.to_vec(), response: response.to_vec(), active_from: None }
    }

    #[test]
    fn outputs_are_the_rows_before_each_response_token() {
        let packed = pack(&[sequence(&[1, 2, 3], &[4, 5]), sequence(&[6], &[7])]);
        assert_eq!(packed.batch.tokens, [1, 2, 3, 4, 6]);
        assert_eq!(packed.batch.positions, [0, 1, 2, 3, 0]);
        assert_eq!(packed.batch.outputs, [2, 3, 4]);
        assert_eq!(packed.targets, [4, 5, 7]);
        assert_eq!(packed.spans, [0..2, 2..3]);
        assert_eq!(packed.batch.segments[1].rows, 4..5);
    }

    #[test]
    fn responses_share_the_rows_of_their_prompt() {
        let same = [sequence(&[1, 2, 3, 4], &[5]), sequence(&[1, 2, 3, 4], &[6, 7])];
        let packed = pack(&same);
        assert_eq!(packed.batch.tokens, [1, 2, 3, 4, 4, 6]);
        assert_eq!(packed.batch.positions, [0, 1, 2, 3, 3, 4]);
        assert_eq!(packed.batch.outputs, [3, 4, 5]);
        assert_eq!(packed.targets, [5, 6, 7]);
        let cached: Vec<_> = packed.batch.segments.iter().map(|s| s.cached).collect();
        assert_eq!(cached, [0, 3, 3]);
    }

    #[test]
    fn adapters_that_are_active_on_the_answer_have_no_weight_in_the_rows_before() {
        let from = |at, s: Sequence| Sequence { active_from: Some(at), ..s };
        let same = [
            from(2, sequence(&[1, 2, 3, 4], &[5])),
            from(2, sequence(&[1, 2, 3, 4], &[6, 7])),
            from(0, sequence(&[8], &[9])),
        ];
        let values = pack(&same).batch.coefficients.unwrap().values;
        assert_eq!(values, [0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
        assert!(pack(&[sequence(&[1, 2], &[3])]).batch.coefficients.is_none());
    }

    #[test]
    fn stored_rows_are_not_in_the_batch_and_the_rest_of_the_prompt_is_shared() {
        let from = |at, s: Sequence| Sequence { active_from: Some(at), ..s };
        let sequences = [
            from(2, sequence(&[1, 2, 3, 4], &[5])),
            from(2, sequence(&[1, 2, 3, 4], &[6, 7])),
            from(0, sequence(&[8], &[9])),
            from(3, sequence(&[1, 2, 3, 4], &[7, 7])),
        ];
        let mut asked = Vec::new();
        let packed = pack_after(&sequences, |tokens| {
            asked.push(tokens.to_vec());
            Ok::<_, Infallible>(Some(Arc::default()))
        });
        let packed = packed.unwrap();
        assert_eq!(asked, [vec![1, 2], vec![1, 2, 3]]);
        assert_eq!(packed.batch.tokens, [3, 4, 4, 6, 8, 4, 7]);
        assert_eq!(packed.batch.positions, [2, 3, 3, 4, 0, 3, 4]);
        assert_eq!(packed.batch.outputs, [1, 2, 3, 4, 5, 6]);
        assert_eq!(packed.targets, [5, 6, 7, 9, 7, 7]);
        let segments = packed.batch.segments.iter();
        let segments: Vec<_> =
            segments.map(|s| (s.rows.clone(), s.cached, s.blocks.clone())).collect();
        let expected = [
            (0..1, 2, vec![0]),
            (1..2, 3, vec![]),
            (2..4, 3, vec![]),
            (4..5, 0, vec![]),
            (5..5, 3, vec![1]),
            (5..7, 3, vec![]),
        ];
        assert_eq!(segments, expected);
        assert!(packed.batch.coefficients.unwrap().values.iter().all(|&value| value == 1.0));
    }

    #[test]
    fn micro_batches_keep_to_the_budget_and_cover_everything() {
        let lens = [3, 3, 9, 1, 2, 2, 7];
        let all: Vec<_> = lens.iter().map(|&n| sequence(&vec![0; n], &[0])).collect();
        let runs = micro_batches(&all, 6);
        assert_eq!(runs, [0..2, 2..3, 3..6, 6..7]);
        // Five responses to one prompt of 9: 9 rows, then 1 each.
        let same: Vec<_> = (0..5).map(|_| sequence(&[0; 9], &[0])).collect();
        assert_eq!(micro_batches(&same, 11), [0..3, 3..5]);
    }
}
