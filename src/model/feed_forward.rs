//! The feed-forward half of a layer: one gated pair of products, or a mixture of experts.
//!
//! With experts, `p = softmax(router x)` over all of them; a row takes the few of largest `p`, and
//! `y = Σ wₑ · downₑ(activation(gateₑ x) ⊙ upₑ x)` with `w` those `p`, normalised to sum 1 where the model
//! does so. The rows of an expert are gathered, so that its products are dense.

use super::{
    config::Experts,
    linear::{Inputs, Linear, Parameter, linears},
};
use crate::kernels::{Activation, Kernels, Result, RowCoefficients};

/// What comes before the down projection, and that.
#[derive(Debug, Clone)]
pub struct FeedForward<W> {
    pub inputs: Inner<W>,
    /// `[hidden, width]`.
    pub down: Linear<W>,
}

/// The inner half of a feed-forward layer, `[width, hidden]` each.
#[derive(Debug, Clone)]
pub enum Inner<W> {
    /// Gate and up projections.
    Gated(Inputs<W, 2>),
    /// An up projection, negative values of which become 0.
    Plain(Linear<W>),
}

/// The feed-forward half of one layer.
#[derive(Debug, Clone)]
pub enum Mlp<W> {
    /// One for all rows.
    Dense(FeedForward<W>),
    /// Some of several for each row.
    Mixture(Mixture<W>),
}

/// A mixture of experts.
#[derive(Debug, Clone)]
pub struct Mixture<W> {
    /// How many there are, and how a row's are weighed.
    pub settings: Experts,
    /// `[experts, hidden]`.
    pub router: Parameter<W>,
    /// As many as the settings say.
    pub experts: Vec<FeedForward<W>>,
}

impl<W> FeedForward<W> {
    /// `activation(gate x) ⊙ up x`, or without a gate `max(up x, 0)`: the input of the down projection.
    pub fn inner<K: Kernels<Weight = W>>(
        &self,
        k: &K,
        x: &K::Tensor,
        activation: Activation,
        rows: (usize, Option<&RowCoefficients>),
    ) -> Result<K::Tensor> {
        match &self.inputs {
            Inner::Gated(inputs) => {
                let [gate, up] = inputs.of(k, x, rows)?;
                k.gated(activation, gate, &up)
            }
            Inner::Plain(up) => {
                let [up] = linears(k, x, [up.onto(None)], rows.0, rows.1)?;
                k.relu(up)
            }
        }
    }
}

impl<W> Mixture<W> {
    /// `onto + factor · Σ wₑ expertₑ(x)` for `x` and `onto` `[rows, hidden]`, the sum in the order of the
    /// experts.
    pub fn onto<K: Kernels<Weight = W>>(
        &self,
        k: &K,
        (x, mut onto): (&K::Tensor, K::Tensor),
        (activation, factor): (Activation, f32),
        c: Option<&RowCoefficients>,
    ) -> Result<K::Tensor> {
        let scores = k.to_host(&self.router.linear(k, x, c)?)?;
        for (expert, chosen) in self.experts.iter().zip(route(&scores, &self.settings)) {
            if chosen.is_empty() {
                continue;
            }
            let (rows, weights): (Vec<usize>, Vec<f32>) =
                chosen.into_iter().map(|(row, weight)| (row, weight * factor)).unzip();
            let c = c.map(|c| c.select(&rows));
            let of = (rows.len(), c.as_ref());
            let inner = expert.inner(k, &k.select_rows(x, &rows)?, activation, of)?;
            let [y] = linears(k, &inner, [expert.down.onto(None)], of.0, of.1)?;
            onto = k.add_to_rows(onto, &rows, &k.scale_rows(y, &weights)?)?;
        }
        Ok(onto)
    }
}

/// The rows of each expert with their weights, from the router's scores `[rows, experts]`. Of equal
/// experts the first is taken.
fn route(scores: &[f32], settings: &Experts) -> Vec<Vec<(usize, f32)>> {
    let mut chosen = vec![Vec::new(); settings.count];
    for (row, scores) in scores.chunks_exact(settings.count).enumerate() {
        let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exponentials: Vec<f32> = scores.iter().map(|score| (score - largest).exp()).collect();
        let total: f32 = exponentials.iter().sum();
        let mut order: Vec<usize> = (0..settings.count).collect();
        order.sort_by(|&a, &b| exponentials[b].total_cmp(&exponentials[a]));
        order.truncate(settings.active);
        let sum: f32 = match settings.normalised {
            true => order.iter().map(|&expert| exponentials[expert]).sum(),
            false => total,
        };
        for expert in order {
            chosen[expert].push((row, exponentials[expert] / sum));
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::names::ExpertNames;

    #[test]
    fn the_likeliest_experts_get_their_shares_and_of_equal_ones_the_first() {
        let of = |normalised| Experts {
            count: 3,
            active: 2,
            normalised,
            width: 1,
            names: ExpertNames::Mlp,
            layers: vec![true],
        };
        let scores = [1.0f32, 1.0, 1.0, 2f32.ln(), -9.0, 3f32.ln()];
        let small = (-9f32).exp() / (5.0 + (-9f32).exp());
        let normalised = route(&scores, &of(true));
        assert_eq!(normalised[1], [(0, 0.5)]);
        let near = |got: f32, expected: f32| (got - expected).abs() < 1e-6;
        assert!(near(normalised[0][1].1, 0.4) && near(normalised[2][0].1, 0.6));
        let plain = route(&scores, &of(false));
        assert!(near(plain[0][0].1, 1.0 / 3.0));
        assert!(near(plain[2][0].1, 0.6 * (1.0 - small)));
    }
}
