//! Biases of scores by distance (T5).

/// Biases of scores by distance, constants.
pub(super) struct Bias {
    /// Of each head, of each distance from −reach to reach.
    heads: Vec<Vec<f32>>,
}

impl Bias {
    /// Biases of the buckets `[buckets, heads]`, and the bucket of each distance.
    pub(super) fn new(table: &[f32], buckets: &[u16], heads: usize) -> Self {
        let bias = |head: usize| move |&bucket: &u16| table[usize::from(bucket) * heads + head];
        Self { heads: (0..heads).map(|head| buckets.iter().map(bias(head)).collect()).collect() }
    }

    /// Adds those of a head to the scores of rows from `first` on, as seen from `position`.
    pub(super) fn add(&self, scores: &mut [f32], head: usize, first: usize, position: usize) {
        let biases = &self.heads[head];
        for (score, row) in scores.iter_mut().zip(first..) {
            let place = (row + biases.len() / 2).saturating_sub(position).min(biases.len() - 1);
            *score += biases[place];
        }
    }
}
