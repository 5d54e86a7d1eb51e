//! Sequences packed for one forward: rows of all sequences one after another, no padding.

use std::ops::Range;

use ladle::kernels::{Batch, RowCoefficients, Segment};

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
    /// Rows that a forward over it computes: every token but the last predicts one.
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
    /// Response tokens of all sequences, one per output row.
    pub targets: Vec<u32>,
    /// Output rows of each sequence.
    pub spans: Vec<Range<usize>>,
}

/// Packs sequences in the given order. Consecutive ones with the same prompt share its rows: a
/// segment without outputs that each response continues (`cached`).
pub fn pack(sequences: &[Sequence]) -> Packed {
    let mut packed = Packed::default();
    let mut active = Vec::new();
    for group in sequences.chunk_by(|a, b| a.prompt == b.prompt) {
        let shared = match group {
            [first, _, ..] => first.shareable(),
            _ => 0,
        };
        if shared > 0 {
            packed.segment(0, group[0].prompt.iter().copied().take(shared));
            active.resize(packed.batch.tokens.len(), group[0].active_from);
        }
        for sequence in group {
            let Sequence { prompt, response, active_from } = sequence;
            let tokens = prompt.iter().chain(response).copied().take(sequence.rows());
            packed.segment(shared, tokens.skip(shared));
            active.resize(packed.batch.tokens.len(), *active_from);
            let end = packed.batch.tokens.len();
            packed.batch.outputs.extend(end - response.len()..end);
            let first = packed.targets.len();
            packed.targets.extend(response);
            packed.spans.push(first..packed.targets.len());
        }
    }
    packed.batch.coefficients = coefficients(&packed.batch.positions, &active);
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
    /// Adds the rows of a segment after `cached` tokens of its sequence.
    fn segment(&mut self, cached: usize, tokens: impl Iterator<Item = u32>) {
        let batch = &mut self.batch;
        let start = batch.tokens.len();
        batch.tokens.extend(tokens);
        let rows = start..batch.tokens.len();
        batch.positions.extend((cached..).map(|position| position as u32).take(rows.len()));
        batch.segments.push(Segment { rows, cached, blocks: Vec::new() });
    }
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
