//! Kernels on sixteen lanes, and the range of a storage type as they test it.

use crate::{
    kernels::Dtype,
    simd::{Isa, Lanes, Simd, Vectorised},
};

/// Lanes that the kernels work on, whatever the registers of a set: [`Simd::Sixteen`].
pub const LANES: usize = 16;

/// How far ahead of the reads lines are requested. The hardware stops at each 4 KiB page.
pub const AHEAD_BYTES: usize = 2048;

/// Elements per iteration: a whole cache line of a 16-bit type, so that streamed lines are full.
pub const STEP: usize = 2 * LANES;

/// Rows that [`super::add_product`] takes at once (at most).
pub const TILE_ROWS: usize = 8;

/// A kernel on sixteen lanes. Every set widens, multiplies, adds and rounds in the same order,
/// without fused multiply-adds, so that all of them give the same bits.
pub trait Kernel {
    /// Scalar code from index `from` on: the whole kernel on the portable set, the last partial
    /// vector on the others.
    fn plain(self, from: usize);
    /// The whole kernel; `rows` is the height of a tile that leaves its sums in the set's registers.
    fn run<L: Lanes>(self, l: L, rows: usize);
}

/// Runs a kernel on an instruction set.
pub fn run<K: Kernel>(isa: Isa, kernel: K) {
    struct Work<K>(K);
    impl<K: Kernel> Vectorised for Work<K> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            if S::INTRINSICS {
                let rows = if S::LANES == LANES { TILE_ROWS } else { TILE_ROWS / 2 };
                self.0.run(s.sixteen(), rows);
            } else {
                self.0.plain(0);
            }
        }
    }
    isa.run(Work(kernel));
}

/// The range of a storage type, as the kernels test it.
#[derive(Debug, Clone, Copy)]
pub struct StorageRange {
    /// Sums round to finite values exactly when their magnitude is below it.
    limit: f32,
    /// A sum times it is infinite when the sum reaches `limit`, or comes near it by 1e-6.
    stretch: f32,
}

impl StorageRange {
    /// The range of `dtype`; of f32 for blocks, which are never the output of a merge.
    pub fn of(dtype: Dtype) -> Self {
        let limit = match dtype {
            // Halfway from the largest value to the next that one exponent more would hold.
            Dtype::F16 => 65_520.0,
            Dtype::Bf16 => f32::from_bits(0x7f7f_8000),
            Dtype::F32 | Dtype::Quantised(_) => return Self { limit: f32::INFINITY, stretch: 1.0 },
        };
        Self { limit, stretch: f32::MAX / limit * (1.0 + 1e-6) }
    }

    pub fn excludes(self, sum: f32) -> bool {
        sum.abs() >= self.limit || sum.is_nan()
    }

    /// NaN in the lanes where one of two sums may lie outside the range, else 0. One that lies
    /// outside is infinite once stretched, and so is what is added to it, or NaN.
    #[inline(always)]
    pub fn test<L: Lanes>(self, l: L, a: L::V, b: L::V) -> L::V {
        let stretch = l.splat(self.stretch);
        l.mul(l.add(l.mul(a, stretch), l.mul(b, stretch)), l.splat(0.0))
    }

    /// Whether a lane is NaN.
    #[inline(always)]
    pub fn any<L: Lanes>(l: L, tests: L::V) -> bool {
        assert_eq!(L::LANES, LANES, "vectors of sixteen");
        let mut lanes = [0.0; LANES];
        // SAFETY: as many values as lanes.
        unsafe { l.store(lanes.as_mut_ptr(), tests) };
        lanes.iter().any(|lane| lane.is_nan())
    }
}
