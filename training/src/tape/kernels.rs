//! The operations of the decoder on a [`Tape`].

use std::ops::Range;

use candle_core::{Device, Tensor};
use ladle::kernels::{
    Activation, AttentionShape, Batch, ColumnScale, HostTensor, Kernels, Norm, Product,
    RelativeBias, Result, Rope, RowCoefficients, Segment, Sight,
    check::{self, fits, groups},
};
use rayon::prelude::*;

use super::{
    Gradients, Stored, Tape, Value,
    narrow::{Way, multiply},
    product::{View, parallel_product},
    read,
    rows::{self, Angles, CHUNK, Gains},
};
use crate::autograd::{Differentiable, column_factors, refused};

impl Tape {
    /// `onto + dropout(x) Wᵀ`: a frozen weight costs no gradient, a tracked one gets its own.
    fn product(&self, onto: Option<Value>, x: &Value, w: &Tensor) -> Result<Value> {
        let (outer, inner) = w.dims2().map_err(refused)?;
        fits("linear", "input width", inner, x.width)?;
        let (rows, node, w) = (x.rows, x.node, w.clone());
        let mask = self.dropout.as_ref().and_then(|dropout| dropout.mask(&w));
        let masked = move |x: &[f32]| {
            mask.map(|mask| {
                let mut masked = vec![0f32; x.len()];
                mask.add(&mut masked, x);
                masked
            })
        };
        let (onto, mut y) = match onto {
            None => (None, None),
            Some(y) => {
                fits("linear", "rows of the summand", rows, y.rows)?;
                fits("linear", "width of the summand", outer, y.width)?;
                (y.node, Some(y.take()))
            }
        };
        let keep = y.is_some();
        let out = y.get_or_insert_with(|| vec![0f32; rows * outer]);
        let dropped = masked(&x.data);
        let input = dropped.as_deref().unwrap_or(&x.data);
        multiply(self.narrow.as_deref(), &w, Way::Forward, input, (out, keep))?;
        let tracked = w.track_op();
        let learns = tracked || node.is_some() || onto.is_some();
        let result = (y.unwrap_or_default(), rows, outer);
        Ok(self.result(result, learns, |_| {
            let (kept, narrow) = (tracked.then(|| x.data.clone()), self.narrow.clone());
            move |grad: Vec<f32>, gradients: &mut Gradients| {
                if let Some(x) = &kept {
                    let g = View::new(&grad[..], rows, outer);
                    let dropped = masked(x);
                    let x = View::new(dropped.as_deref().unwrap_or(x), rows, inner);
                    gradients.add_weight(&w, |out, keep| {
                        parallel_product(View::new(out, outer, inner), keep, g.t(), x, 1.0);
                    });
                }
                let narrow = narrow.as_deref();
                let added = gradients.add(node, rows * inner, |out, keep| {
                    let Some(mask) = mask else {
                        return multiply(narrow, &w, Way::Back, &grad, (out, keep));
                    };
                    let mut back = vec![0f32; rows * inner];
                    multiply(narrow, &w, Way::Back, &grad, (&mut back, false))?;
                    mask.add(out, &back);
                    Ok(())
                });
                added.unwrap_or(Ok(()))?;
                gradients.give(onto, grad);
                Ok(())
            }
        }))
    }

    /// `x[t, j] · factor(t, j)`.
    fn scaled(
        &self,
        x: Value,
        factor: impl Fn(usize, usize) -> f32 + Send + Sync + 'static,
    ) -> Value {
        let (rows, width, node) = (x.rows, x.width, x.node);
        let scale = move |x: &mut [f32]| {
            x.par_chunks_mut(width.max(1)).enumerate().with_min_len(16).for_each(|(row, x)| {
                x.iter_mut().enumerate().for_each(|(column, x)| *x *= factor(row, column));
            });
        };
        let mut y = x.take();
        scale(&mut y);
        self.result((y, rows, width), node.is_some(), |_| {
            move |mut grad: Vec<f32>, gradients: &mut Gradients| {
                scale(&mut grad);
                gradients.give(node, grad);
                Ok(())
            }
        })
    }

    fn norm(&self, x: &Value, gains: Gains, eps: f32) -> Value {
        let (rows, width, node) = (x.rows, x.width, x.node);
        let mut y = vec![0f32; x.data.len()];
        rows::rms_norm(&mut y, &x.data, &gains, eps);
        self.result((y, rows, width), node.is_some(), |_| {
            let x = x.data.clone();
            move |mut grad: Vec<f32>, gradients: &mut Gradients| {
                gradients.add(node, x.len(), |out, _| {
                    rows::rms_norm_back(out, &mut grad, &x, &gains, eps);
                });
                Ok(())
            }
        })
    }
}

/// The gains of a norm as they act.
fn shifted(gains: &[f32], norm: Norm) -> Vec<f32> {
    gains.iter().map(|gain| norm.shift + gain).collect()
}

impl Kernels for Tape {
    type Tensor = Value;
    /// f32 on the CPU, contiguous.
    type Weight = Tensor;
    type Cache = Stored;

    fn weight(&self, tensor: &HostTensor) -> Result<Tensor> {
        Differentiable::new(Device::Cpu).weight(tensor)
    }

    fn embed(&self, table: &Tensor, tokens: &[u32]) -> Result<Value> {
        let (vocabulary, width) = table.dims2().map_err(refused)?;
        if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
            fits("embed", "vocabulary", token as usize + 1, vocabulary)?;
        }
        let gather = |table: &[f32]| {
            tokens
                .iter()
                .flat_map(|&token| &table[token as usize * width..][..width])
                .copied()
                .collect()
        };
        Ok(Value::constant(read(table, gather).map_err(refused)?, tokens.len(), width))
    }

    fn products(&self, products: Vec<Product<'_, Self>>) -> Result<Vec<Value>> {
        let one = |p: Product<'_, Self>| self.product(p.onto, p.x, p.weight);
        products.into_iter().map(one).collect()
    }

    fn bias_add(&self, y: Value, bias: &Tensor) -> Result<Value> {
        fits("bias_add", "width", bias.elem_count(), y.width)?;
        // The gradient of `y` is that of the sum.
        let (rows, width, node) = (y.rows, y.width, y.node);
        let mut sum = y.take();
        read(bias, |bias| {
            let rows = sum.par_chunks_mut(width.max(1)).with_min_len(16);
            rows.for_each(|row| row.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias));
        })
        .map_err(refused)?;
        Ok(Value { node, ..Value::constant(sum, rows, width) })
    }

    fn broadcast(&self, w: &Tensor, rows: usize) -> Result<Value> {
        let values = read(w, |w| w.repeat(rows)).map_err(refused)?;
        Ok(Value::constant(values, rows, w.elem_count()))
    }

    fn scale_rows(&self, x: Value, scale: &[f32]) -> Result<Value> {
        fits("scale_rows", "scales", x.rows, scale.len())?;
        let scale = scale.to_vec();
        Ok(self.scaled(x, move |row, _| scale[row]))
    }

    fn scale_columns(
        &self,
        x: Value,
        scales: &[ColumnScale],
        coefficients: Option<&RowCoefficients>,
    ) -> Result<Value> {
        let (rows, width) = x.dims();
        let (height, factors) = column_factors(scales, coefficients, rows, width)?;
        Ok(self.scaled(x, move |row, column| factors[row % height * width + column]))
    }

    fn add(&self, a: Value, b: &Value) -> Result<Value> {
        fits("add", "rows", a.rows, b.rows)?;
        fits("add", "width", a.width, b.width)?;
        let (rows, width, nodes) = (a.rows, a.width, (a.node, b.node));
        let mut sum = a.take();
        rows::add(&mut sum, &b.data);
        Ok(self.result((sum, rows, width), nodes.0.is_some() || nodes.1.is_some(), |_| {
            move |grad: Vec<f32>, gradients: &mut Gradients| {
                gradients.add(nodes.0, grad.len(), |out, _| rows::add(out, &grad));
                gradients.give(nodes.1, grad);
                Ok(())
            }
        }))
    }

    fn rms_norm(&self, x: &Value, gain: &Tensor, norm: Norm) -> Result<Value> {
        let group = gain.elem_count();
        groups("rms_norm", x.width, group)?;
        let values = read(gain, |gain| shifted(gain, norm)).map_err(refused)?;
        Ok(self.norm(x, Gains { values, group, groups: x.width / group }, norm.eps))
    }

    fn rms_norm_rows(&self, x: &Value, gain: &Value, norm: Norm) -> Result<Value> {
        fits("rms_norm_rows", "gain rows", x.rows, gain.rows)?;
        groups("rms_norm_rows", x.width, gain.width)?;
        let (values, group) = (shifted(&gain.data, norm), gain.width);
        Ok(self.norm(x, Gains { values, group, groups: x.width / group }, norm.eps))
    }

    fn rope(&self, x: Value, positions: &[u32], rope: &Rope) -> Result<Value> {
        let (rows, width, node) = (x.rows, x.width, x.node);
        check::rope(rows, width, positions, rope)?;
        let angles = Angles::new(positions, rope);
        let mut y = x.take();
        angles.rotate(&mut y, width, 1.0);
        Ok(self.result((y, rows, width), node.is_some(), |_| {
            move |mut grad: Vec<f32>, gradients: &mut Gradients| {
                angles.rotate(&mut grad, width, -1.0);
                gradients.give(node, grad);
                Ok(())
            }
        }))
    }

    fn attention(
        &self,
        q: Value,
        k: Value,
        v: Value,
        layer: usize,
        shape: AttentionShape,
        batch: &Batch,
        cache: &mut Stored,
    ) -> Result<Value> {
        self.attend_batch(q, [k, v], layer, shape, batch, cache)
    }

    fn store(
        &self,
        k: &Value,
        v: &Value,
        layer: usize,
        segments: &[Segment],
        cache: &mut Stored,
    ) -> Result<()> {
        cache.hold([k, v], layer, segments)
    }

    fn attend(
        &self,
        q: &Value,
        layer: usize,
        shape: AttentionShape,
        segments: &[Segment],
        sight: Sight,
        bias: Option<RelativeBias<'_, Value>>,
        cache: &mut Stored,
    ) -> Result<Value> {
        self.attend_held(q, layer, shape, (segments, sight), bias, cache)
    }

    fn relu(&self, x: Value) -> Result<Value> {
        let (rows, width, node) = (x.rows, x.width, x.node);
        let mut y = x.take();
        y.par_iter_mut().with_min_len(CHUNK).for_each(|y| *y = y.max(0.0));
        Ok(self.result((y, rows, width), node.is_some(), |y| {
            let y = y.clone();
            move |mut grad: Vec<f32>, gradients: &mut Gradients| {
                let pairs = grad.par_iter_mut().zip(&y[..]).with_min_len(CHUNK);
                pairs.filter(|(_, y)| **y == 0.0).for_each(|(grad, _)| *grad = 0.0);
                gradients.give(node, grad);
                Ok(())
            }
        }))
    }

    fn gated(&self, activation: Activation, gate: Value, up: &Value) -> Result<Value> {
        fits("gated", "rows of up", gate.rows, up.rows)?;
        fits("gated", "width of up", gate.width, up.width)?;
        let (rows, width, nodes) = (gate.rows, gate.width, (gate.node, up.node));
        let y = rows::gated(activation, &gate.data, &up.data);
        Ok(self.result((y, rows, width), nodes.0.is_some() || nodes.1.is_some(), |_| {
            let (gate, up) = (gate.data, up.data.clone());
            move |mut grad: Vec<f32>, gradients: &mut Gradients| {
                let dgate = rows::gated_back(activation, &mut grad, &gate, &up);
                gradients.give(nodes.0, dgate);
                gradients.give(nodes.1, grad);
                Ok(())
            }
        }))
    }

    fn select_rows(&self, x: &Value, rows: &[usize]) -> Result<Value> {
        let (height, width, node) = (x.rows, x.width, x.node);
        if let Some(&row) = rows.iter().find(|&&row| row >= height) {
            fits("select_rows", "rows", row + 1, height)?;
        }
        if rows.iter().copied().eq(0..height) {
            return Ok(x.clone());
        }
        let y = rows.iter().flat_map(|row| &x.data[row * width..][..width]).copied().collect();
        let rows = rows.to_vec();
        Ok(self.result((y, rows.len(), width), node.is_some(), |_| {
            move |grad: Vec<f32>, gradients: &mut Gradients| {
                gradients.add(node, height * width, |out, _| {
                    for (grad, row) in grad.chunks_exact(width.max(1)).zip(rows) {
                        let out = &mut out[row * width..][..width];
                        out.iter_mut().zip(grad).for_each(|(out, grad)| *out += grad);
                    }
                });
                Ok(())
            }
        }))
    }

    fn select_columns(&self, x: &Value, columns: Range<usize>) -> Result<Value> {
        check::columns("select_columns", x.width, &columns)?;
        let (rows, from, width, node) = (x.rows, x.width, columns.len(), x.node);
        let data = x.data.chunks_exact(from.max(1));
        let y = data.flat_map(|row| &row[columns.clone()]).copied().collect();
        Ok(self.result((y, rows, width), node.is_some(), |_| {
            move |grad: Vec<f32>, gradients: &mut Gradients| {
                gradients.add(node, rows * from, |out, _| {
                    let out = out.chunks_exact_mut(from.max(1));
                    for (out, grad) in out.zip(grad.chunks_exact(width.max(1))) {
                        let out = out[columns.clone()].iter_mut();
                        out.zip(grad).for_each(|(out, grad)| *out += grad);
                    }
                });
                Ok(())
            }
        }))
    }

    fn add_to_rows(&self, x: Value, rows: &[usize], y: &Value) -> Result<Value> {
        check::added_rows(x.dims(), rows, y.dims())?;
        let (height, width, nodes) = (x.rows, x.width, (x.node, y.node));
        let mut sum = x.take();
        for (&row, y) in rows.iter().zip(y.data.chunks_exact(width.max(1))) {
            let sum = &mut sum[row * width..(row + 1) * width];
            sum.iter_mut().zip(y).for_each(|(sum, y)| *sum += y);
        }
        let rows = rows.to_vec();
        Ok(self.result((sum, height, width), nodes.0.is_some() || nodes.1.is_some(), |_| {
            move |grad: Vec<f32>, gradients: &mut Gradients| {
                let of = |row: &usize| grad[row * width..(row + 1) * width].iter().copied();
                gradients.give(nodes.1, rows.iter().flat_map(of).collect());
                gradients.give(nodes.0, grad);
                Ok(())
            }
        }))
    }

    fn to_host(&self, x: &Value) -> Result<Vec<f32>> {
        Ok(x.data.to_vec())
    }

    fn soft_cap(&self, x: Value, cap: f32) -> Result<Value> {
        let (rows, width, node) = (x.rows, x.width, x.node);
        let mut y = x.take();
        rows::soft_cap(&mut y, cap);
        Ok(self.result((y, rows, width), node.is_some(), |y| {
            let y = y.clone();
            move |mut grad: Vec<f32>, gradients: &mut Gradients| {
                rows::soft_cap_back(&mut grad, &y, cap);
                gradients.give(node, grad);
                Ok(())
            }
        }))
    }
}
