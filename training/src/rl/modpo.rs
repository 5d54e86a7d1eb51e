//! MODPO (Zhou et al. 2023, arXiv 2310.03708; `docs/algorithms.md` §6.5): DPO on pairs that one reward
//! orders, with a margin from the other rewards. The pairs are responses of the policy to one prompt.

/// Constants of one policy's pairs.
pub struct Pairing<'a> {
    /// The reward that orders a pair.
    pub own: usize,
    /// w: weights of the rewards, Σ = 1, own > 0.
    pub weights: &'a [f64],
    /// β: DPO's strength of the KL constraint, > 0.
    pub beta: f64,
}

impl Pairing<'_> {
    /// Weights a of the responses to one prompt, so that the gradient of −Σ a log π is that of MODPO's
    /// −log σ(m) summed over the pairs. `rewards[response][objective]` are standardised,
    /// `log_ratios[response]` is log π − log π_ref of the whole response, nats.
    ///
    /// The best response by the own reward makes a pair with the worst one, the second best with the
    /// second worst, and so on; a tie makes none. For the better y and the other y′
    ///
    /// m = (β(log-ratio(y) − log-ratio(y′)) − Σ_{j ≠ own} wⱼ(rⱼ(y) − rⱼ(y′)))/w_own,
    /// a(y) = β σ(−m)/w_own = −a(y′).
    pub fn weights(&self, rewards: &[&[Option<f64>]], log_ratios: &[f64]) -> Vec<f64> {
        let Self { own, weights, beta } = *self;
        let mut result = vec![0.0; rewards.len()];
        let by_own = |index: &usize| Some((*index, (*rewards[*index].get(own)?)?));
        let mut order: Vec<(usize, f64)> = (0..rewards.len()).filter_map(|i| by_own(&i)).collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1));
        let own_weight = weights[own];
        for pair in 0..order.len() / 2 {
            let (better, worse) = (order[pair], order[order.len() - 1 - pair]);
            if better.1 <= worse.1 {
                break;
            }
            let (better, worse) = (better.0, worse.0);
            let others = weights.iter().zip(rewards[better]).zip(rewards[worse]).enumerate();
            let margin: f64 = others
                .filter(|(j, _)| *j != own)
                .filter_map(|(_, ((w, r), other))| Some(w * ((*r)? - (*other)?)))
                .sum();
            let m = (beta * (log_ratios[better] - log_ratios[worse]) - margin) / own_weight;
            let a = beta / own_weight / (1.0 + m.exp());
            result[better] = a;
            result[worse] = -a;
        }
        result
    }
}
