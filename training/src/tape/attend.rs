//! Attention as an operation of a [`Tape`]: whose keys and values it reads, and where their gradients
//! go.

use ladle::kernels::{
    AttentionShape, Batch, RelativeBias, Result, Segment, Sight,
    check::{self, fits, groups},
};

use super::{
    Gradients, Stored, Tape, Value,
    attention::{Attention, Inputs},
    bias::Bias,
    rows,
    stored::Held,
};
use crate::autograd::tree::{Tree, trees};

impl Tape {
    /// [`ladle::kernels::Kernels::attention`].
    pub(super) fn attend_batch(
        &self,
        q: Value,
        [k, v]: [Value; 2],
        layer: usize,
        shape: AttentionShape,
        batch: &Batch,
        cache: &mut Stored,
    ) -> Result<Value> {
        let rows = batch.tokens.len();
        for (what, x, heads) in [
            ("queries", &q, shape.heads),
            ("keys", &k, shape.kv_heads),
            ("values", &v, shape.kv_heads),
        ] {
            fits("attention", what, rows, x.rows)?;
            fits("attention", what, heads * shape.head_dim, x.width)?;
        }
        groups("attention", shape.heads, shape.kv_heads)?;
        let trees = trees(batch)?;
        let stored = cache.of(&trees, layer, shape.kv_heads * shape.head_dim)?;
        if let Some(kept) = &mut cache.kept {
            kept.layers.push([k.data.clone(), v.data.clone()]);
        }
        Ok(self.attended((shape, trees, None), q, Some([k, v]), stored))
    }

    /// [`ladle::kernels::Kernels::attend`]: to keys and values of this forward.
    pub(super) fn attend_held(
        &self,
        q: &Value,
        layer: usize,
        shape: AttentionShape,
        (segments, sight): (&[Segment], Sight),
        bias: Option<RelativeBias<'_, Value>>,
        cache: &Stored,
    ) -> Result<Value> {
        fits("attend", "width of queries", shape.heads * shape.head_dim, q.width)?;
        groups("attend", shape.heads, shape.kv_heads)?;
        let mut next = 0;
        for segment in segments {
            fits("attend", "first row of a segment", next, segment.rows.start)?;
            next = segment.rows.end;
        }
        fits("attend", "rows in segments", q.rows, next)?;
        let bias = match bias {
            None => None,
            Some(RelativeBias { table, buckets }) => {
                check::biases(1, shape.heads, table.dims(), buckets)?;
                Some(Bias::new(table.data(), buckets, shape.heads))
            }
        };
        let trees: Vec<Tree> = segments.iter().map(|s| Tree::of_stored(s, sight)).collect();
        let held = cache.held(layer, segments, &trees, shape.kv_heads * shape.head_dim)?;
        Ok(self.attended((shape, trees, bias), q.clone(), None, held))
    }

    /// The output for queries `q`, with the keys and values of their own rows (if they see any) and
    /// what is stored for each tree.
    fn attended(
        &self,
        (shape, trees, bias): (AttentionShape, Vec<Tree>, Option<Bias>),
        q: Value,
        own: Option<[Value; 2]>,
        stored: Vec<Held>,
    ) -> Value {
        let width = shape.kv_heads * shape.head_dim;
        let own = own.unwrap_or_else(|| [(); 2].map(|()| Value::constant(Vec::new(), 0, width)));
        let learned = stored.iter().flat_map(|held| &held.pair).any(|x| x.node.is_some());
        let learns = learned || [&q, &own[0], &own[1]].into_iter().any(|x| x.node.is_some());
        let op = Attention { shape, trees, rows: q.rows, bias, learned };
        let y = op.forward(inputs(&q, &own, &slices(&stored)));
        self.result((y, q.rows, shape.heads * shape.head_dim), learns, |y| {
            let y = y.clone();
            move |grad: Vec<f32>, gradients: &mut Gradients| {
                let grads = op.backward(inputs(&q, &own, &slices(&stored)), &y, &grad);
                gradients.give(q.node, grads.q);
                for (own, grad) in own.into_iter().zip(grads.own) {
                    gradients.give(own.node, grad);
                }
                for (held, grads) in stored.into_iter().zip(grads.stored) {
                    let elements = held.elements();
                    for (x, grad) in held.pair.into_iter().zip(grads) {
                        gradients.add(x.node, x.data.len(), |out, _| {
                            rows::add(&mut out[elements.clone()], &grad);
                        });
                    }
                }
                Ok(())
            }
        })
    }
}

fn inputs<'a>(q: &'a Value, own: &'a [Value; 2], stored: &'a [[&'a [f32]; 2]]) -> Inputs<'a> {
    Inputs { q: &q.data, k: &own[0].data, v: &own[1].data, stored }
}

/// The keys and values of each tree.
fn slices(stored: &[Held]) -> Vec<[&[f32]; 2]> {
    stored.iter().map(|held| held.pair.each_ref().map(|x| &x.data[held.elements()])).collect()
}
