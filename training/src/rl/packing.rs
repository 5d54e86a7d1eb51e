//! Sequences packed for one forward: rows of all sequences one after another, no padding.

use std::ops::Range;

use ladle::kernels::{Batch, Segment};

/// A prompt and the response whose tokens are scored; neither is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Prompt tokens.
    pub prompt: Vec<u32>,
    /// Response tokens as they were sampled (or written), end of sequence included.
    pub response: Vec<u32>,
}

impl Sequence {
    /// Rows that a forward over it computes: every token but the last predicts one.
    pub fn rows(&self) -> usize {
        (self.prompt.len() + self.response.len()).saturating_sub(1)
    }
}

/// A batch whose outputs predict the response tokens.
#[derive(Debug, Clone, Default)]
pub struct Packed {
    /// What the decoder runs on; `outputs` are the rows before each response token.
    pub batch: Batch,
    /// Response tokens of all sequences, one per output row.
    pub targets: Vec<u32>,
    /// Output rows of each sequence.
    pub spans: Vec<Range<usize>>,
}

/// Packs sequences in the given order.
pub fn pack<'a>(sequences: impl IntoIterator<Item = &'a Sequence>) -> Packed {
    let mut packed = Packed::default();
    for sequence in sequences {
        let (start, rows) = (packed.batch.tokens.len(), sequence.rows());
        let tokens = sequence.prompt.iter().chain(&sequence.response).take(rows);
        packed.batch.tokens.extend(tokens);
        packed.batch.positions.extend(0..rows as u32);
        let segment = Segment { rows: start..start + rows, cached: 0, blocks: Vec::new() };
        packed.batch.segments.push(segment);
        let outputs = start + rows - sequence.response.len()..start + rows;
        packed.batch.outputs.extend(outputs);
        let first = packed.targets.len();
        packed.targets.extend(&sequence.response);
        packed.spans.push(first..packed.targets.len());
    }
    packed
}

/// Splits `0..sequences.len()` into runs of at most `budget` rows; a sequence longer than that
/// runs alone.
pub fn micro_batches(sequences: &[Sequence], budget: usize) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut rows = 0;
    for (index, sequence) in sequences.iter().enumerate() {
        match runs.last_mut() {
            Some(run) if rows + sequence.rows() <= budget => run.end = index + 1,
            _ => {
                runs.push(index..index + 1);
                rows = 0;
            }
        }
        rows += sequence.rows();
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(prompt: &[u32], response: &[u32]) -> Sequence {
        Sequence { prompt: prompt.to_vec(), response: response.to_vec() }
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
    fn micro_batches_keep_to_the_budget_and_cover_everything() {
        let lens = [3, 3, 9, 1, 2, 2, 7];
        let all: Vec<_> = lens.iter().map(|&n| sequence(&vec![0; n], &[0])).collect();
        let runs = micro_batches(&all, 6);
        assert_eq!(runs, [0..2, 2..3, 3..6, 6..7]);
    }
}
