//! One layer: the blocks that every stack of layers is made of.
//!
//! ```text
//! x += o(attention(q(norm x), k(norm x), v(norm x)))
//! x += down(activation(gate(norm x)) ⊙ up(norm x)), without a gate down(max(up(norm x), 0))
//! ```
//!
//! Attention itself is the stack's: it knows what a row may see.

use super::{
    config::{Experts, ModelConfig, QkNorm},
    feed_forward::{FeedForward, Inner, Mixture, Mlp},
    linear::{Inputs, Linear, Parameter, linears},
    names::{Module, Stack},
};
use crate::kernels::{Kernels, Result, RowCoefficients};

/// Number of rows, and their coefficients.
pub(super) type Rows<'a> = (usize, Option<&'a RowCoefficients>);

#[derive(Debug, Clone)]
pub(super) struct Layer<W> {
    /// Norms before and after attention, before and after the feed-forward layer.
    norms: [Option<Parameter<W>>; 4],
    qkv: Inputs<W, 3>,
    o: Linear<W>,
    qk_norm: Option<(Parameter<W>, Parameter<W>)>,
    mlp: Mlp<W>,
}

impl<W: Clone> Layer<W> {
    /// Takes the parameters of layer `index` of a stack from `parameter` by their Hugging Face names.
    pub(super) fn load<E>(
        config: &ModelConfig,
        (stack, index): (Stack, usize),
        parameter: &mut impl FnMut(&str) -> std::result::Result<Parameter<W>, E>,
    ) -> std::result::Result<Self, E> {
        let mut linear = |module: Module, bias: bool| {
            Ok(Linear {
                weight: parameter(&stack.weight(module, index))?,
                bias: if bias { Some(parameter(&stack.bias(module, index))?) } else { None },
            })
        };
        let [q_norm, k_norm] = [Module::QNorm, Module::KNorm].map(|norm| stack.weight(norm, index));
        Ok(Self {
            qkv: if config.fused {
                let [q, kv] = [config.heads, config.kv_heads].map(|n| n * config.head_dim);
                Inputs::Fused(linear(Module::Qkv, config.qkv_bias)?, [q, kv, kv])
            } else {
                let mut of = |module| linear(module, config.qkv_bias);
                Inputs::Apart([of(Module::Q)?, of(Module::K)?, of(Module::V)?])
            },
            o: linear(Module::O, config.output_bias)?,
            mlp: match config.experts(index) {
                Some(settings) => Mlp::Mixture(load_mixture(settings, index, parameter)?),
                None => {
                    let mut of = |module| linear(module, config.mlp_bias);
                    let inputs = if config.fused {
                        let width = config.intermediate_size;
                        Inner::Gated(Inputs::Fused(of(Module::GateUp)?, [width; 2]))
                    } else if config.gated {
                        Inner::Gated(Inputs::Apart([of(Module::Gate)?, of(Module::Up)?]))
                    } else {
                        Inner::Plain(of(Module::Up)?)
                    };
                    Mlp::Dense(FeedForward { inputs, down: of(Module::Down)? })
                }
            },
            qk_norm: if config.qk_norm == QkNorm::None {
                None
            } else {
                Some((parameter(&q_norm)?, parameter(&k_norm)?))
            },
            norms: {
                let mut norms = [None, None, None, None];
                for (norm, module) in norms.iter_mut().zip(config.norms.modules()) {
                    let name = module.map(|module| stack.weight(module, index));
                    *norm = name.map(|name| parameter(&name)).transpose()?;
                }
                norms
            },
        })
    }

    /// Queries, keys and values of the rows of `x`, normed as the configuration says; not rotated.
    pub(super) fn project<K: Kernels<Weight = W>>(
        &self,
        k: &K,
        config: &ModelConfig,
        x: &K::Tensor,
        (rows, c): Rows<'_>,
    ) -> Result<[K::Tensor; 3]> {
        let h = match &self.norms[0] {
            Some(norm) => &norm.rms_norm(k, x, rows, config.norm, c)?,
            None => x,
        };
        let [mut query, mut key, value] = self.qkv.of(k, h, (rows, c))?;
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            query = q_norm.rms_norm(k, &query, rows, config.norm, c)?;
            key = k_norm.rms_norm(k, &key, rows, config.norm, c)?;
        }
        Ok([query, key, value])
    }

    /// `x` with the output of attention added to it.
    pub(super) fn add_attended<K: Kernels<Weight = W>>(
        &self,
        k: &K,
        config: &ModelConfig,
        x: K::Tensor,
        attended: &K::Tensor,
        rows: Rows<'_>,
    ) -> Result<K::Tensor> {
        residual(k, config, x, attended, (&self.o, self.norms[1].as_ref()), rows)
    }

    /// `x` with the output of the feed-forward layer added to it.
    pub(super) fn add_mlp<K: Kernels<Weight = W>>(
        &self,
        k: &K,
        config: &ModelConfig,
        x: K::Tensor,
        (rows, c): Rows<'_>,
    ) -> Result<K::Tensor> {
        let [_, _, before, after] = &self.norms;
        let h = match before {
            Some(norm) => &norm.rms_norm(k, &x, rows, config.norm, c)?,
            None => &x,
        };
        match &self.mlp {
            Mlp::Dense(dense) => {
                let h = dense.inner(k, h, config.activation, (rows, c))?;
                residual(k, config, x, &h, (&dense.down, after.as_ref()), (rows, c))
            }
            Mlp::Mixture(mixture) => {
                let factors = (config.activation, config.multipliers.residual);
                mixture.onto(k, (h, x.clone()), factors, c)
            }
        }
    }
}

/// The mixture of a layer.
fn load_mixture<W, E>(
    settings: &Experts,
    layer: usize,
    parameter: &mut impl FnMut(&str) -> std::result::Result<Parameter<W>, E>,
) -> std::result::Result<Mixture<W>, E> {
    let names = settings.names;
    let router = parameter(&format!("{}.weight", names.router(layer)))?;
    let mut experts = Vec::with_capacity(settings.count);
    for expert in 0..settings.count {
        let mut of = |module| {
            let name = format!("{}.weight", names.path(layer, expert, module));
            Ok(Linear { weight: parameter(&name)?, bias: None })
        };
        let inputs = Inner::Gated(Inputs::Apart([of(Module::Gate)?, of(Module::Up)?]));
        experts.push(FeedForward { inputs, down: of(Module::Down)? });
    }
    Ok(Mixture { settings: settings.clone(), router, experts })
}

/// `x + multiplier · norm(linear(h))`.
fn residual<K: Kernels>(
    k: &K,
    config: &ModelConfig,
    x: K::Tensor,
    h: &K::Tensor,
    (linear, norm): (&Linear<K::Weight>, Option<&Parameter<K::Weight>>),
    (rows, c): Rows<'_>,
) -> Result<K::Tensor> {
    let multiplier = config.multipliers.residual;
    if norm.is_none() && multiplier == 1.0 {
        let [x] = linears(k, h, [linear.onto(Some(x))], rows, c)?;
        return Ok(x);
    }
    let [mut y] = linears(k, h, [linear.onto(None)], rows, c)?;
    if let Some(norm) = norm {
        y = norm.rms_norm(k, &y, rows, config.norm, c)?;
    }
    k.add(x, &scaled(k, y, rows, multiplier)?)
}

/// `factor · x` for `x` of `rows` rows.
pub(super) fn scaled<K: Kernels>(
    k: &K,
    x: K::Tensor,
    rows: usize,
    factor: f32,
) -> Result<K::Tensor> {
    if factor == 1.0 { Ok(x) } else { k.scale_rows(x, &vec![factor; rows]) }
}
