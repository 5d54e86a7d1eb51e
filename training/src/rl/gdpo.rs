//! GDPO (arXiv 2601.05242; `docs/algorithms.md` §6.4): each reward is normalised among the responses
//! to one prompt before the rewards are weighed and added, so that none of them is drowned by
//! another's scale.

/// ε that is added to a standard deviation (TRL's value).
const EPSILON: f64 = 1e-4;

/// Advantages of whole responses, from `rewards[objective][response]` in groups of `samples`
/// neighbours (the responses to one prompt): Aⱼ = (rⱼ − mean)/(std + ε) within the group,
/// A = Σⱼ wⱼAⱼ, then (A − mean)/(std + ε) over the batch; std over n − 1.
/// A group that a reward does not judge has none of it.
pub fn gdpo_advantages(rewards: &[Vec<Option<f64>>], weights: &[f64], samples: usize) -> Vec<f64> {
    let count = rewards.first().map_or(0, Vec::len);
    let mut sums = vec![0.0; count];
    for (series, weight) in rewards.iter().zip(weights) {
        for (group, sums) in series.chunks(samples).zip(sums.chunks_mut(samples)) {
            let Some(group) = group.iter().copied().collect::<Option<Vec<f64>>>() else { continue };
            for (sum, advantage) in sums.iter_mut().zip(normalised(&group)) {
                *sum += weight * advantage;
            }
        }
    }
    normalised(&sums)
}

fn normalised(values: &[f64]) -> Vec<f64> {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    let std = (squares / (count - 1.0).max(1.0)).sqrt();
    values.iter().map(|value| (value - mean) / (std + EPSILON)).collect()
}
