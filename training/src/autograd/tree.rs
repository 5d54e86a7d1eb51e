//! Attention structure of a packed batch: trees of a prompt and the responses that share it.
//!
//! The rows of a batch are in segments, in this order for each tree: a first segment, which the others
//! continue, and the others. The first one starts at position 0, or it continues stored rows: then its
//! `cached` counts them and its `blocks` holds their number in the cache. The others have no blocks,
//! and all tokens before them are `cached`.

use std::ops::Range;

use ladle::kernels::{Batch, Result, Segment, Sight, check::fits};

/// Consecutive rows that attend to each other: a first segment, and the segments that continue it,
/// each seeing the stored rows before the first one, all of the first one, and itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// Rows of the batch.
    pub rows: Range<usize>,
    /// Number in the cache of the stored rows that the tree continues.
    pub stored: Option<usize>,
    /// How many they are.
    pub before: usize,
    /// First row of each segment, counted from the tree's; the first is 0.
    starts: Vec<usize>,
    /// Rows of the first segment.
    shared: usize,
    /// Which stored rows are seen, where nothing else is: keys and values of the tree's own rows are
    /// among the stored ones, or there are none.
    sight: Option<Sight>,
}

impl Tree {
    /// The rows of a segment that see stored rows alone: `cached` ones, and with a sight that includes
    /// them those of the segment itself.
    pub fn of_stored(segment: &Segment, sight: Sight) -> Self {
        let (rows, shared) = (segment.rows.clone(), segment.rows.len());
        let own = if sight == Sight::Cached { 0 } else { shared };
        let before = segment.cached + own;
        Self { rows, stored: None, before, starts: vec![0], shared, sight: Some(sight) }
    }

    /// Position of row `row` of a tree of [`Self::of_stored`].
    pub fn position(&self, row: usize) -> usize {
        let own = if self.sight == Some(Sight::Cached) { 0 } else { self.rows.len() };
        self.before - own + row
    }

    /// The rows that row `row` sees: stored ones, counted from the first; those of the shared segment
    /// (empty for its own rows) and those of its own segment, itself the last, both counted from the
    /// tree's first.
    pub fn visible(&self, row: usize, window: Option<usize>) -> [Range<usize>; 3] {
        if let Some(sight) = self.sight {
            let stored = match (sight, self.position(row) + 1) {
                (Sight::Causal, end) => window.map_or(0, |size| end.saturating_sub(size))..end,
                _ => 0..self.before,
            };
            return [stored, 0..0, 0..0];
        }
        let segment = self.starts.partition_point(|&start| start <= row) - 1;
        let start = self.starts[segment];
        let (before, shared) = (self.before, if segment == 0 { 0 } else { self.shared });
        let position = before + shared + row - start;
        let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
        [
            first.min(before)..before,
            first.saturating_sub(before).min(shared)..shared,
            start + first.saturating_sub(before + shared)..row + 1,
        ]
    }

    /// The tree's rows in runs of at most `size`, each in the first segment or after it.
    pub fn blocks(&self, size: usize) -> impl Iterator<Item = Range<usize>> {
        let runs = [0..self.shared, self.shared..self.rows.len()];
        runs.into_iter().flat_map(move |run| {
            let end = run.end;
            run.step_by(size).map(move |start| start..(start + size).min(end))
        })
    }

    /// The rows that any row of a block sees, as [`Self::visible`] counts them; of the block's own
    /// segments, those up to its last row.
    pub fn seen(&self, block: &Range<usize>, window: Option<usize>) -> [Range<usize>; 3] {
        if self.sight.is_some() {
            let last = self.visible(block.end - 1, window);
            return [self.visible(block.start, window)[0].start..last[0].end, 0..0, 0..0];
        }
        let start = |part: usize| {
            block.clone().map(|row| self.visible(row, window)[part].start).min().unwrap_or(0)
        };
        let shared = self.visible(block.start, window)[1].end;
        [start(0)..self.before, start(1)..shared, start(2)..block.end]
    }
}

/// The trees of a batch. A segment with cached tokens and no block continues the last tree, and must
/// have all rows before its responses as context.
pub fn trees(batch: &Batch) -> Result<Vec<Tree>> {
    let mut trees: Vec<Tree> = Vec::new();
    let mut next = 0;
    for segment in &batch.segments {
        fits("attention", "first row of a segment", next, segment.rows.start)?;
        next = segment.rows.end;
        let stored = segment.blocks.first().map(|&block| block as usize);
        match trees.last_mut() {
            Some(tree) if segment.cached > 0 && stored.is_none() => {
                fits("attention", "cached tokens", tree.before + tree.shared, segment.cached)?;
                tree.starts.push(segment.rows.start - tree.rows.start);
                tree.rows.end = segment.rows.end;
            }
            _ => {
                if stored.is_none() {
                    fits("attention", "cached tokens of the first segment", 0, segment.cached)?;
                }
                let (rows, shared) = (segment.rows.clone(), segment.rows.len());
                let (before, starts) = (segment.cached, vec![0]);
                trees.push(Tree { rows, stored, before, starts, shared, sight: None });
            }
        }
    }
    fits("attention", "rows in segments", batch.tokens.len(), next)?;
    Ok(trees)
}
