//! Attention structure of a packed batch: trees of a prompt and the responses that share it.

use std::ops::Range;

use ladle::kernels::{Batch, Result, check::fits};

/// Consecutive rows that attend to each other: a segment from position 0, and the segments that
/// continue it, each seeing all of it and itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// Rows of the batch.
    pub rows: Range<usize>,
    /// First row of each segment, counted from the tree's; the first is 0.
    starts: Vec<usize>,
    /// Rows of the first segment.
    shared: usize,
}

impl Tree {
    /// The rows that row `row` sees, counted from the tree's first: those of the shared segment
    /// (empty for its own rows), then those of its own segment, itself the last.
    pub fn visible(&self, row: usize, window: Option<usize>) -> [Range<usize>; 2] {
        let segment = self.starts.partition_point(|&start| start <= row) - 1;
        let start = self.starts[segment];
        let shared = if segment == 0 { 0 } else { self.shared };
        let position = shared + row - start;
        let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
        [first.min(shared)..shared, start + first.saturating_sub(shared)..row + 1]
    }

    /// The tree's rows in runs of at most `size`, each in the first segment or after it.
    pub fn blocks(&self, size: usize) -> impl Iterator<Item = Range<usize>> {
        let runs = [0..self.shared, self.shared..self.rows.len()];
        runs.into_iter().flat_map(move |run| {
            let end = run.end;
            run.step_by(size).map(move |start| start..(start + size).min(end))
        })
    }

    /// The rows that any row of a block sees: those of the first segment (empty for its own rows), and
    /// those of the block's own segments up to its last row.
    pub fn seen(&self, block: &Range<usize>, window: Option<usize>) -> [Range<usize>; 2] {
        let start = |part: usize| {
            block.clone().map(|row| self.visible(row, window)[part].start).min().unwrap_or(0)
        };
        let shared = self.visible(block.start, window)[0].end;
        [start(0)..shared, start(1)..block.end]
    }
}

/// The trees of a batch. A segment with cached tokens continues the last one without, and must have
/// all of its rows as context.
pub fn trees(batch: &Batch) -> Result<Vec<Tree>> {
    let mut trees: Vec<Tree> = Vec::new();
    let mut next = 0;
    for segment in &batch.segments {
        fits("attention", "first row of a segment", next, segment.rows.start)?;
        next = segment.rows.end;
        match trees.last_mut() {
            Some(tree) if segment.cached > 0 => {
                fits("attention", "cached tokens", tree.shared, segment.cached)?;
                tree.starts.push(segment.rows.start - tree.rows.start);
                tree.rows.end = segment.rows.end;
            }
            _ => {
                fits("attention", "cached tokens of the first segment", 0, segment.cached)?;
                let (rows, shared) = (segment.rows.clone(), segment.rows.len());
                trees.push(Tree { rows, starts: vec![0], shared });
            }
        }
    }
    fits("attention", "rows in segments", batch.tokens.len(), next)?;
    Ok(trees)
}
