//! Everything that goes once over an activation.

use crate::kernels::{Dtype, HostTensor};

/// Widens `out.len()` elements of `w` from `start` on; the range must lie in the tensor.
pub(super) fn widen(w: &HostTensor, start: usize, out: &mut [f32]) {
    let size = w.dtype().size();
    let bytes = &w.bytes()[start * size..(start + out.len()) * size];
    match w.dtype() {
        Dtype::F32 => {
            for (out, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                *out = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
        Dtype::Bf16 => {
            for (out, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *out = half::bf16::from_le_bytes([b[0], b[1]]).to_f32();
            }
        }
        Dtype::F16 => {
            for (out, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *out = half::f16::from_le_bytes([b[0], b[1]]).to_f32();
            }
        }
    }
}

/// `out = x / √(mean(x²) + eps) · gain` over one group.
pub(super) fn rms_norm(x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) {
    let mut sums = [0.0f32; 16];
    for x in x.chunks(16) {
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum += x * x;
        }
    }
    let scale = 1.0 / (sums.iter().sum::<f32>() / x.len() as f32 + eps).sqrt();
    for ((out, x), gain) in out.iter_mut().zip(x).zip(gain) {
        *out = x * scale * gain;
    }
}

/// `gate = silu(gate) · up`.
pub(super) fn swiglu(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + (-*gate).exp()) * up;
    }
}

/// Rotates each head of a row; `cos_sin` is `[2, head_dim / 2]`.
pub(super) fn rotate(row: &mut [f32], cos_sin: &[f32]) {
    let half = cos_sin.len() / 2;
    let (cos, sin) = cos_sin.split_at(half);
    for head in row.chunks_exact_mut(2 * half) {
        let (a, b) = head.split_at_mut(half);
        for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}
