//! Deterministic splits: the part of a row depends only on the seed and its id, so adding data never
//! moves a row from test to training.

/// Splits `rows` into parts of the given shares (in order; each > 0, Σ ≤ 1, what is left over is
/// dropped). Within a part, the order of `rows` is kept. Rows of equal id land in the same part.
pub fn split<T>(
    rows: Vec<T>,
    id: impl Fn(&T) -> &str,
    shares: &[f64],
    seed: u64,
) -> Result<Vec<Vec<T>>, SplitError> {
    let total: f64 = shares.iter().sum();
    if !(shares.iter().all(|s| *s > 0.0) && total <= 1.0 + 1e-9) {
        return Err(SplitError(shares.to_vec()));
    }
    let mut parts: Vec<Vec<T>> = shares.iter().map(|_| Vec::new()).collect();
    for row in rows {
        let at = place(seed, id(&row));
        let mut edge = 0.0;
        let part = shares.iter().position(|share| {
            edge += share;
            at < edge
        });
        if let Some(part) = part.and_then(|p| parts.get_mut(p)) {
            part.push(row);
        }
    }
    Ok(parts)
}

/// Shares outside (0, 1], or a sum above 1.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("shares of a split must each be above 0 and add up to at most 1, got {0:?}")]
pub struct SplitError(pub Vec<f64>);

/// A number in [0, 1) from seed and id: FNV-1a, finished with SplitMix64's mixer.
fn place(seed: u64, id: &str) -> f64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in seed.to_le_bytes().into_iter().chain(id.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((hash ^ (hash >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}
