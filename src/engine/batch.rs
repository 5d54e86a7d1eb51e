//! The ragged batches of a step: which rows go into which forward pass.

use super::{blocks::BlockId, request::Mode, scheduler::SeqId};
use crate::kernels::{Batch, RowCoefficients, Segment};

/// Rows of one lane of a sequence under one model.
#[derive(Debug, Clone)]
pub struct LaneRows<'a> {
    /// The sequence.
    pub id: SeqId,
    pub lane: usize,
    /// Index of its model among those of the step.
    pub model: usize,
    /// Position of the first row: the tokens in the cache.
    pub start: usize,
    pub tokens: &'a [u32],
    /// Key/value blocks of the lane.
    pub blocks: &'a [BlockId],
    /// What of its sequence is encoded.
    pub encoded: Encoded,
    /// Rows (from 0, ascending) to compute logits for.
    pub outputs: Vec<usize>,
}

/// The part of a sequence that an encoder reads, at its beginning; nothing by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Tokens of it.
    pub tokens: usize,
    /// Positions that it takes, whole blocks. The decoder counts its own from there.
    pub positions: usize,
    /// These blocks.
    pub blocks: usize,
}

/// The sequence and position that a row of logits belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    /// The sequence.
    pub id: SeqId,
    pub lane: usize,
    /// Position in the sequence: these logits are of the token after it.
    pub position: usize,
}

/// One forward pass of a step.
#[derive(Debug, Clone)]
pub struct Forward {
    /// The merged model to use, by its index; `None` is a mixed pass.
    pub merged: Option<usize>,
    /// Distinct models in it.
    pub distinct: usize,
    /// Its rows.
    pub batch: Batch,
    /// The sequence of each segment of the batch.
    pub sequences: Vec<SeqId>,
    /// What each row of its result belongs to.
    pub outputs: Vec<Output>,
}

impl Forward {
    fn new(merged: Option<usize>, terms: Option<usize>) -> Self {
        let coefficients = terms.map(|terms| RowCoefficients { terms, values: Vec::new() });
        let batch = Batch { coefficients, ..Batch::default() };
        Self { merged, distinct: 0, batch, sequences: Vec::new(), outputs: Vec::new() }
    }

    /// Appends rows of a lane: what of them is encoded to the prompts, the others to the batch itself.
    fn push(&mut self, lane: &LaneRows<'_>, terms: &[f32]) {
        let Encoded { tokens, positions, blocks } = lane.encoded;
        if positions == 0 {
            return self.push_rows(lane, terms);
        }
        let terms_of = self.batch.coefficients.as_ref().map(|c| c.terms);
        let (prompt, own) = lane.blocks.split_at(blocks.min(lane.blocks.len()));
        if lane.start < positions {
            let prompts = self
                .batch
                .prompts
                .get_or_insert_with(|| Box::new(Forward::new(None, terms_of).batch));
            let first = prompts.tokens.len();
            prompts.tokens.extend(lane.tokens.iter().take(tokens));
            prompts.positions.extend(0..tokens as u32);
            let (rows, blocks) = (first..prompts.tokens.len(), prompt.to_vec());
            if let Some(coefficients) = &mut prompts.coefficients {
                rows.clone().for_each(|_| coefficients.values.extend_from_slice(terms));
            }
            prompts.segments.push(Segment { rows, cached: 0, blocks });
        }
        let skipped = positions.saturating_sub(lane.start);
        let (first, outputs) = (self.batch.tokens.len(), self.outputs.len());
        self.push_rows(
            &LaneRows {
                start: lane.start + skipped - positions,
                tokens: lane.tokens.get(skipped..).unwrap_or_default(),
                blocks: own,
                outputs: lane.outputs.iter().filter_map(|row| row.checked_sub(skipped)).collect(),
                ..lane.clone()
            },
            terms,
        );
        self.outputs[outputs..].iter_mut().for_each(|output| output.position += positions);
        let (rows, blocks) = (first..self.batch.tokens.len(), prompt.to_vec());
        self.batch.encoded.push(Segment { rows, cached: tokens, blocks });
    }

    fn push_rows(&mut self, lane: &LaneRows<'_>, terms: &[f32]) {
        let batch = &mut self.batch;
        let first = batch.tokens.len();
        batch.tokens.extend_from_slice(lane.tokens);
        batch.positions.extend((lane.start as u32..).take(lane.tokens.len()));
        let rows = first..first + lane.tokens.len();
        match batch.segments.last_mut() {
            // A model that takes over where the one before ends extends the same segment.
            Some(last)
                if last.blocks == lane.blocks && last.cached + last.rows.len() == lane.start =>
            {
                last.rows.end = rows.end;
            }
            _ => {
                batch.segments.push(Segment {
                    rows,
                    cached: lane.start,
                    blocks: lane.blocks.to_vec(),
                });
                self.sequences.push(lane.id);
            }
        }
        if let Some(coefficients) = &mut batch.coefficients {
            lane.tokens.iter().for_each(|_| coefficients.values.extend_from_slice(terms));
        }
        for &row in &lane.outputs {
            batch.outputs.push(first + row);
            let position = lane.start + row;
            self.outputs.push(Output { id: lane.id, lane: lane.lane, position });
        }
    }
}

/// Lays out a step: one pass for all mixed models together and one for each fused model. `models`
/// are the modes and term values (all of one length) of the step's models.
pub fn layout(rows: &[LaneRows<'_>], models: &[(Mode, &[f32])]) -> Vec<Forward> {
    let width = models.first().map_or(0, |(_, terms)| terms.len());
    let mut mixed = Forward::new(None, Some(width));
    let mut fused: Vec<Option<Forward>> = models.iter().map(|_| None).collect();
    let mut seen = vec![false; models.len()];
    for lane in rows {
        let index = lane.model;
        let (mode, terms) = models[index];
        let forward = match mode {
            Mode::Mixed => &mut mixed,
            Mode::Fused => fused[index].get_or_insert_with(|| Forward::new(Some(index), None)),
        };
        if !std::mem::replace(&mut seen[index], true) {
            forward.distinct += 1;
        }
        forward.push(lane, terms);
    }
    let mixed = (!mixed.batch.tokens.is_empty()).then_some(mixed);
    mixed.into_iter().chain(fused.into_iter().flatten()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixed_models_share_a_pass_and_fused_ones_have_their_own() {
        let part = |id, model, start, tokens: &'static [u32], outputs: &[usize]| LaneRows {
            id,
            lane: 0,
            model,
            start,
            tokens,
            blocks: &[0, 1],
            encoded: Encoded::default(),
            outputs: outputs.to_vec(),
        };
        let parts = [
            part(1, 0, 4, &[40], &[0]),
            part(2, 1, 0, &[50, 51, 52], &[2]),
            part(3, 2, 0, &[60, 61], &[]),
            part(4, 1, 7, &[53], &[0]),
        ];
        let terms: [&[f32]; 3] = [&[1.0, 0.0], &[0.0, 1.0], &[0.5, 0.5]];
        let models: Vec<(Mode, &[f32])> =
            [Mode::Mixed, Mode::Fused, Mode::Mixed].into_iter().zip(terms).collect();
        let forwards = layout(&parts, &models);
        assert_eq!(forwards.len(), 2);

        let mixed = &forwards[0];
        assert_eq!((mixed.merged, mixed.distinct), (None, 2));
        assert_eq!(mixed.batch.tokens, [40, 60, 61]);
        assert_eq!(mixed.batch.positions, [4, 0, 1]);
        assert_eq!(mixed.batch.outputs, [0]);
        let values = &mixed.batch.coefficients.as_ref().unwrap().values;
        assert_eq!(values, &[1.0, 0.0, 0.5, 0.5, 0.5, 0.5]);
        assert_eq!(mixed.outputs, [Output { id: 1, lane: 0, position: 4 }]);

        let fused = &forwards[1];
        assert_eq!((fused.merged, fused.distinct), (Some(1), 1));
        assert_eq!(fused.batch.tokens, [50, 51, 52, 53]);
        assert_eq!(fused.batch.outputs, [2, 3]);
        assert!(fused.batch.coefficients.is_none());
        assert_eq!(fused.batch.segments[1].rows, 3..4);
        assert_eq!(fused.batch.segments[1].cached, 7);
    }
}
