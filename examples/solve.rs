//! Solves preferences for their merging coefficients; needs no model.
//!
//!     cargo run --release --example solve

use std::error::Error;

use ladle::preference::{Alpha, MixingMatrix, Preference, Solution};

/// λ and c of one preference over three backbones, each trained with 0.7 of its weight on its own
/// objective.
pub fn solve(weights: &[f64], alpha: f64) -> Result<Solution, Box<dyn Error>> {
    let mixing = MixingMatrix::circulant(3, 0.7)?;
    Ok(mixing.solve(&Preference::new(weights, 3)?, &Alpha::Scalar(alpha)))
}

fn main() -> Result<(), Box<dyn Error>> {
    for weights in [[1.0, 0.0, 0.0], [0.2, 0.3, 0.5], [1.0, 1.0, 1.0]] {
        let solution = solve(&weights, 0.25)?;
        println!("μ {weights:?}  λ {:.3?}  {:.3?}", solution.lambda, solution.coefficients);
    }
    Ok(())
}
