//! Embeddings: the final hidden states of a prompt's tokens become one vector.

/// Which tokens of a prompt its embedding is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The last one.
    Last,
    /// All of them alike.
    Mean,
}

/// An embedding while the rows of its prompt are computed.
#[derive(Debug)]
pub struct Pool {
    pooling: Pooling,
    sum: Vec<f64>,
    rows: usize,
}

impl Pool {
    /// A pool of no rows.
    pub fn new(pooling: Pooling) -> Self {
        Self { pooling, sum: Vec::new(), rows: 0 }
    }

    /// Whether it needs the states of all tokens.
    pub fn needs_all(&self) -> bool {
        self.pooling == Pooling::Mean
    }

    /// Takes in the state of a token.
    pub fn push(&mut self, state: &[f32]) {
        self.sum.resize(state.len(), 0.0);
        self.sum.iter_mut().zip(state).for_each(|(sum, x)| *sum += f64::from(*x));
        self.rows += 1;
    }

    /// The mean of what it has.
    pub fn mean(&self) -> Vec<f32> {
        self.sum.iter().map(|sum| (sum / self.rows.max(1) as f64) as f32).collect()
    }

    /// Forgets what it has.
    pub fn clear(&mut self) {
        *self = Self::new(self.pooling);
    }
}
