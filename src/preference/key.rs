//! The identity of a merged model.

use std::sync::Arc;

use super::Coefficients;

/// Coefficients on a grid of 1e-6, −0 as 0: two requests want the same model exactly when their
/// keys are equal. The key fixes the model: merged weights and per-row coefficients are computed
/// from [`ModelKey::coefficients`], never from the coefficients that a request brought. The cache
/// of merged models, key/value blocks and stored answers are all told apart by it.
///
/// Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelKey {
    /// Millionths: of the backbones in order, then of θ_sft.
    units: Arc<[i64]>,
}

impl ModelKey {
    /// Largest absolute coefficient that the grid tells apart from its neighbours.
    pub const MOST: f64 = 1e9;
    const PER_UNIT: f64 = 1e6;

    /// The key of c; each coefficient is finite and at most [`Self::MOST`] in absolute value.
    pub fn of(c: &Coefficients) -> Self {
        let values = c.backbones.iter().chain([&c.sft]);
        Self { units: values.map(|value| (value * Self::PER_UNIT).round() as i64).collect() }
    }

    /// θ_sft alone, among `backbones` backbones.
    pub fn sft(backbones: usize) -> Self {
        Self::of(&Coefficients { backbones: vec![0.0; backbones], sft: 1.0 })
    }

    /// The coefficients that the key stands for, each within 5e-7 of what it was made of.
    pub fn coefficients(&self) -> Coefficients {
        let mut values: Vec<f64> =
            self.units.iter().map(|&units| units as f64 / Self::PER_UNIT).collect();
        let sft = values.pop().unwrap_or_default();
        Coefficients { backbones: values, sft }
    }

    /// Its bytes, for hashing: equal keys have equal bytes, on every machine.
    pub fn bytes(&self) -> impl Iterator<Item = [u8; 8]> + '_ {
        self.units.iter().map(|units| units.to_le_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(a: f64, b: f64) -> ModelKey {
        ModelKey::of(&Coefficients { backbones: vec![a, b], sft: -0.0 })
    }

    #[test]
    fn keys_agree_within_half_a_millionth_and_stand_for_their_own_coefficients() {
        assert_eq!(key(0.3, 0.7), key(0.3 + 4e-7, 0.7 - 4e-7));
        assert_ne!(key(0.3, 0.7), key(0.300_001, 0.699_999));
        let odd = key(-1.0 / 3.0, 4.0 / 3.0);
        assert_eq!(ModelKey::of(&odd.coefficients()), odd);
        assert_eq!(odd.coefficients().backbones, [-0.333_333, 1.333_333]);
    }

    #[test]
    fn minus_zero_is_zero_to_the_bit() {
        assert_eq!(key(0.0, 1.0), key(-0.0, 1.0));
        let c = key(-0.0, -1e-9).coefficients();
        assert!(c.backbones.iter().chain([&c.sft]).all(|v| v.to_bits() == 0));
    }

    #[test]
    fn neighbours_differ_up_to_the_largest_coefficient() {
        let most = ModelKey::MOST;
        assert_ne!(key(most, -most), key(most - 1e-6, -most));
        assert_ne!(key(most, -most), key(most, -most + 1e-6));
    }
}
