//! AMX: tile registers and their products of bf16.

use std::{
    arch::{asm, x86_64::*},
    marker::PhantomData,
    mem::{self, offset_of},
};

use half::bf16;

use super::{
    tiles::{Bf16Tiles, TILE, TileProduct},
    vector::Run,
    x86::Avx512Bf16,
};

/// AMX-TILE and AMX-BF16, with what [`Avx512Bf16`] stands for, and the system's leave to use them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Amx(Avx512Bf16);

impl Amx {
    /// The token, where the machine has the instructions and the system keeps their registers.
    pub fn detect() -> Option<Self> {
        let token = Self(Avx512Bf16::detect()?);
        // A machine with AVX-512 has leaf 7.
        let features = __cpuid_count(7, 0).edx;
        const AMX_BF16: u32 = 1 << 22;
        const AMX_TILE: u32 = 1 << 24;
        let has = features & AMX_BF16 != 0 && features & AMX_TILE != 0;
        (has && permitted()).then_some(token)
    }

    /// Does work with the features.
    #[inline(always)]
    pub(super) fn run<W: Run<Self>>(self, work: W) -> W::Output {
        struct OfDots<W>(Amx, W);
        impl<W: Run<Amx>> Run<Avx512Bf16> for OfDots<W> {
            type Output = W::Output;
            #[inline(always)]
            fn run(self, _: Avx512Bf16) -> W::Output {
                self.1.run(self.0)
            }
        }
        self.0.run(OfDots(self, work))
    }
}

/// Whether the system keeps tile registers for this process: Linux does for those that ask.
fn permitted() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        // SAFETY: the call takes two numbers and changes what the system keeps for this process.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// The argument of `ldtilecfg`.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// This thread's tile registers, set to a shape: sums in 0 to 3, left tiles in 4 and 5, right ones in
/// 6 and 7.
pub struct Shaped {
    /// Registers are a thread's own.
    _thread: PhantomData<*const ()>,
}

impl Drop for Shaped {
    fn drop(&mut self) {
        // SAFETY: the registers were configured by this thread, and nothing in them is read again.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) }
    }
}

/// Defines a product of tiles in one block, so that nothing is kept in a tile register outside it.
macro_rules! product {
    ($of:ident, $load:literal, $zero:literal, $step:literal, $store:literal) => {{
        let (a, b) = ($of.left, $of.right);
        asm!(
            "/* between sums: {left}, {right} */",
            "mov {t}, [{of} + {row}]",
            "cmp byte ptr [{of} + {fresh}], 0",
            "jne 2f",
            $load,
            "jmp 3f",
            "2:",
            $zero,
            "3:",
            $step,
            "mov {t}, [{of} + {count}]",
            "test {t}, {t}",
            "jz 5f",
            "mov {p}, {ahead}",
            "4:",
            "prefetcht1 [{p}]",
            "add {p}, [{of} + {apart}]",
            "dec {t}",
            "jnz 4b",
            "add {ahead}, [{of} + {step}]",
            "5:",
            "add {a0}, 64",
            "add {a1}, 64",
            "lea {b0}, [{b0} + 8 * {ldb}]",
            "lea {b0}, [{b0} + 8 * {ldb}]",
            "lea {b1}, [{b1} + 8 * {ldb}]",
            "lea {b1}, [{b1} + 8 * {ldb}]",
            "dec {steps}",
            "jnz 3b",
            "mov {t}, [{of} + {row}]",
            $store,
            of = in(reg) $of,
            a0 = inout(reg) a => _,
            a1 = inout(reg) a.wrapping_byte_add($of.left_tile) => _,
            b0 = inout(reg) b => _,
            b1 = inout(reg) b.wrapping_byte_add($of.right_tile) => _,
            lda = in(reg) $of.left_row,
            ldb = in(reg) $of.right_row,
            steps = inout(reg) $of.steps => _,
            ahead = inout(reg) $of.ahead.first => _,
            t = out(reg) _,
            p = out(reg) _,
            row = const offset_of!(TileProduct, sums_row),
            fresh = const offset_of!(TileProduct, fresh),
            count = const offset_of!(TileProduct, ahead.count),
            apart = const offset_of!(TileProduct, ahead.apart),
            step = const offset_of!(TileProduct, ahead.step),
            sums = const offset_of!(TileProduct, sums),
            left = const offset_of!(TileProduct, sums_left),
            right = const offset_of!(TileProduct, sums_right),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    }};
}

// SAFETY of every block: the token proves the instructions, the caller its pointers.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Bf16Tiles for Amx {
    type D = Avx512Bf16;
    type Shaped = Shaped;

    #[inline(always)]
    fn dots(self) -> Avx512Bf16 {
        self.0
    }
    #[inline(always)]
    fn shaped(self, rows: usize, columns: usize) -> Shaped {
        let (rows, row_bytes) = (rows as u8, 4 * columns as u16);
        let mut config = TileConfig {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        for tile in 0..8 {
            (config.rows[tile], config.row_bytes[tile]) = match tile {
                0..4 => (rows, row_bytes),
                4..6 => (rows, 64),
                _ => (TILE as u8, row_bytes),
            };
        }
        unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly)) }
        Shaped { _thread: PhantomData }
    }
    #[inline(always)]
    unsafe fn round(self, x: *const f32, to: *mut bf16) {
        unsafe {
            let [low, high] = [_mm512_loadu_ps(x), _mm512_loadu_ps(x.add(16))];
            let both = mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(to.cast(), both);
        }
    }
    #[inline(always)]
    unsafe fn multiply<const M: usize, const N: usize>(_: &Shaped, of: &TileProduct) {
        unsafe {
            match (M, N) {
                (2, 2) => product!(
                    of,
                    "mov {p}, [{of} + {sums}]
                     tileloadd tmm0, [{p} + {t}]
                     add {p}, [{of} + {right}]
                     tileloadd tmm1, [{p} + {t}]
                     sub {p}, [{of} + {right}]
                     add {p}, [{of} + {left}]
                     tileloadd tmm2, [{p} + {t}]
                     add {p}, [{of} + {right}]
                     tileloadd tmm3, [{p} + {t}]",
                    "tilezero tmm0
                     tilezero tmm1
                     tilezero tmm2
                     tilezero tmm3",
                    "tileloadd tmm6, [{b0} + {ldb}]
                     tileloadd tmm4, [{a0} + {lda}]
                     tileloadd tmm7, [{b1} + {ldb}]
                     tileloadd tmm5, [{a1} + {lda}]
                     tdpbf16ps tmm0, tmm4, tmm6
                     tdpbf16ps tmm1, tmm4, tmm7
                     tdpbf16ps tmm2, tmm5, tmm6
                     tdpbf16ps tmm3, tmm5, tmm7",
                    "mov {p}, [{of} + {sums}]
                     tilestored [{p} + {t}], tmm0
                     add {p}, [{of} + {right}]
                     tilestored [{p} + {t}], tmm1
                     sub {p}, [{of} + {right}]
                     add {p}, [{of} + {left}]
                     tilestored [{p} + {t}], tmm2
                     add {p}, [{of} + {right}]
                     tilestored [{p} + {t}], tmm3"
                ),
                (2, 1) => product!(
                    of,
                    "mov {p}, [{of} + {sums}]
                     tileloadd tmm0, [{p} + {t}]
                     add {p}, [{of} + {left}]
                     tileloadd tmm2, [{p} + {t}]",
                    "tilezero tmm0
                     tilezero tmm2",
                    "tileloadd tmm6, [{b0} + {ldb}]
                     tileloadd tmm4, [{a0} + {lda}]
                     tileloadd tmm5, [{a1} + {lda}]
                     tdpbf16ps tmm0, tmm4, tmm6
                     tdpbf16ps tmm2, tmm5, tmm6",
                    "mov {p}, [{of} + {sums}]
                     tilestored [{p} + {t}], tmm0
                     add {p}, [{of} + {left}]
                     tilestored [{p} + {t}], tmm2"
                ),
                (1, 2) => product!(
                    of,
                    "mov {p}, [{of} + {sums}]
                     tileloadd tmm0, [{p} + {t}]
                     add {p}, [{of} + {right}]
                     tileloadd tmm1, [{p} + {t}]",
                    "tilezero tmm0
                     tilezero tmm1",
                    "tileloadd tmm6, [{b0} + {ldb}]
                     tileloadd tmm4, [{a0} + {lda}]
                     tileloadd tmm7, [{b1} + {ldb}]
                     tdpbf16ps tmm0, tmm4, tmm6
                     tdpbf16ps tmm1, tmm4, tmm7",
                    "mov {p}, [{of} + {sums}]
                     tilestored [{p} + {t}], tmm0
                     add {p}, [{of} + {right}]
                     tilestored [{p} + {t}], tmm1"
                ),
                (1, 1) => product!(
                    of,
                    "mov {p}, [{of} + {sums}]
                     tileloadd tmm0, [{p} + {t}]",
                    "tilezero tmm0",
                    "tileloadd tmm6, [{b0} + {ldb}]
                     tileloadd tmm4, [{a0} + {lda}]
                     tdpbf16ps tmm0, tmm4, tmm6",
                    "mov {p}, [{of} + {sums}]
                     tilestored [{p} + {t}], tmm0"
                ),
                _ => unreachable!("a product of {M} × {N} tiles"),
            }
        }
    }
    #[inline(always)]
    unsafe fn transpose(
        self,
        [rows, columns]: [usize; 2],
        (from, ld_from): (*const f32, usize),
        (to, ld_to): (*mut f32, usize),
        onto: bool,
    ) {
        unsafe {
            let mask = |len: usize| (u32::MAX >> (32 - len)) as __mmask16;
            if columns == 1 && rows == TILE {
                let places = _mm512_mullo_epi32(
                    _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                    _mm512_set1_epi32(ld_from as i32),
                );
                let mut v = _mm512_i32gather_ps::<4>(places, from);
                if onto {
                    v = _mm512_add_ps(_mm512_loadu_ps(to), v);
                }
                return _mm512_storeu_ps(to, v);
            }
            if rows == 1 && columns == TILE && ld_to == 1 && !onto {
                return _mm512_storeu_ps(to, _mm512_loadu_ps(from));
            }
            let mut v = [_mm512_setzero_ps(); TILE];
            for r in 0..TILE {
                if r < rows {
                    v[r] = _mm512_maskz_loadu_ps(mask(columns), from.add(r * ld_from));
                }
            }
            let v = transposed(v);
            for c in 0..TILE {
                if c < columns {
                    let (to, mut sum) = (to.add(c * ld_to), v[c]);
                    if onto {
                        sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask(rows), to), sum);
                    }
                    _mm512_mask_storeu_ps(to, mask(rows), sum);
                }
            }
        }
    }
}

/// Sixteen rows of sixteen values as columns.
#[inline(always)]
#[allow(clippy::undocumented_unsafe_blocks)] // only called with the token at hand
unsafe fn transposed(v: [__m512; TILE]) -> [__m512; TILE] {
    unsafe {
        let (mut pairs, mut fours) = (v, v);
        for i in (0..TILE).step_by(2) {
            pairs[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
            pairs[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
        }
        // Of four rows: the columns 4 lane + j, lanes of 128 bits.
        for i in (0..TILE).step_by(4) {
            for half in 0..2 {
                let [low, high] =
                    [pairs[i + half], pairs[i + 2 + half]].map(|v| _mm512_castps_pd(v));
                fours[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
                fours[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
            }
        }
        let mut out = v;
        for j in 0..4 {
            let [a, b, c, d] = [fours[j], fours[4 + j], fours[8 + j], fours[12 + j]];
            let (top, bottom) =
                (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d));
            out[j] = _mm512_shuffle_f32x4::<0x88>(top, bottom);
            out[8 + j] = _mm512_shuffle_f32x4::<0xdd>(top, bottom);
            let (top, bottom) =
                (_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(c, d));
            out[4 + j] = _mm512_shuffle_f32x4::<0x88>(top, bottom);
            out[12 + j] = _mm512_shuffle_f32x4::<0xdd>(top, bottom);
        }
        out
    }
}
