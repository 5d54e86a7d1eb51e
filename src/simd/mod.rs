//! The vector instructions of the machine: one dispatch for the products, the merges and the
//! trainer.
//!
//! A *set* ([`Simd`]) is a token that exists only where the machine has its instructions. Kernels
//! are written once, as [`Vectorised`] work over any set, and [`Isa::run`] compiles them once per
//! set with its features. Three kinds of products have instructions of their own beside a set's
//! vectors: [`Bytes`] for quantised weights, [`Bf16Dots`] and [`Bf16Tiles`].
//!
//! | set | vectors | products of bytes | products of bf16 |
//! |---|---|---|---|
//! | `amx-bf16` | AVX-512 F, BW, DQ, VL | VNNI | tiles: AMX-BF16 |
//! | `avx512-bf16` | AVX-512 F, BW, DQ, VL | VNNI | dot products: AVX512-BF16 |
//! | `avx512-vnni` | AVX-512 F, BW, DQ, VL | VNNI | – |
//! | `avx512` | AVX-512 F, BW, DQ, VL | AVX2 | – |
//! | `avx2` | AVX2, FMA, F16C | AVX2 | – |
//! | `neon` | NEON | NEON | – |
//! | `portable` | loops that the compiler vectorises | the same | – |
//!
//! Detection happens once for the process, best set first. Each set is compared with the portable
//! one as it is detected ([`check`]); one that differs is logged and left out. `LADLE_ISA` names the
//! set to use instead of the best. Everything that computes asks [`Isa::chosen`], so that a process
//! never serves with one set and merges with another.

#[cfg(target_arch = "x86_64")]
mod amx;
pub mod bf16;
mod bytes;
pub mod check;
mod element;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
mod tiles;
mod vector;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::{env, fmt, sync::OnceLock};

pub use bf16::{Bf16Dots, Bf16Work};
pub use bytes::{ByteTile, ByteWork, Bytes};
pub use element::Element;
pub use portable::{Portable, exp};
pub use tiles::{Ahead, Bf16Tiles, TILE, TILE_INPUTS, TileProduct, TileWork};
pub use vector::{Lanes, Simd, Vectorised};

use self::{
    bf16::OfPairs,
    bytes::OfBytes,
    check::{Bf16Check, ByteCheck, Mismatch, Outcome, TileCheck, VectorCheck},
    tiles::OfTiles,
    vector::{Floats, Run},
};

/// Names the instruction set to use instead of the best.
pub const VARIABLE: &str = "LADLE_ISA";

/// An instruction set of this machine.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Isa(Set);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    #[cfg(target_arch = "x86_64")]
    Amx(amx::Amx),
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(x86::Avx512Bf16),
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(x86::Avx512Vnni),
    #[cfg(target_arch = "x86_64")]
    Avx512(x86::Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx2(x86::Avx2),
    #[cfg(target_arch = "aarch64")]
    Neon(neon::Neon),
    Portable,
    PortableBf16,
    PortableTiles,
}

/// What an instruction set multiplies bf16 with. All but `None` take activations rounded to bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bf16Products {
    /// Nothing: weights in bf16 are widened to f32.
    None,
    /// Dot products of pairs, [`Bf16Dots`].
    Dots,
    /// Products of tiles, [`Bf16Tiles`].
    Tiles,
}

/// The first of `sets`, of which there is one at least, but none of dot products of bf16 where these are
/// `slow`.
fn preferred(sets: &[Isa], slow: bool) -> Isa {
    let slow = |isa: &&Isa| slow && isa.bf16_products() == Bf16Products::Dots;
    *sets.iter().find(|isa| !slow(isa)).unwrap_or(&sets[0])
}

/// `LADLE_ISA` names no instruction set of this machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{VARIABLE} is {given:?}, expected a set of this machine: {known}")]
pub struct UnknownIsa {
    given: String,
    known: String,
}

impl Isa {
    /// The set that every machine has.
    pub const PORTABLE: Self = Self(Set::Portable);
    /// [`Isa::PORTABLE`] with the model of the instructions for dot products of bf16: slow, and never
    /// chosen, so that kernels over them can be tried on any machine.
    pub const PORTABLE_BF16: Self = Self(Set::PortableBf16);
    /// The same with the model of the instructions for tiles of bf16.
    pub const PORTABLE_TILES: Self = Self(Set::PortableTiles);

    /// Every instruction set of this machine that passes its check, best first.
    pub fn available() -> &'static [Self] {
        static AVAILABLE: OnceLock<Vec<Isa>> = OnceLock::new();
        AVAILABLE.get_or_init(|| {
            let portable = Outcomes::portable();
            sound(detected(), |isa| isa.check(&portable))
        })
    }

    /// The set that this process computes with: the one that `LADLE_ISA` names, or the best.
    pub fn chosen() -> Self {
        static CHOSEN: OnceLock<Isa> = OnceLock::new();
        *CHOSEN.get_or_init(|| {
            let isa = Self::requested().unwrap_or_else(|error| {
                tracing::error!("{error}; using {}", Self::fastest());
                Self::fastest()
            });
            tracing::debug!("instruction set: {isa}");
            isa
        })
    }

    /// What [`Isa::chosen`] is, or why `LADLE_ISA` cannot be followed: for programs to refuse.
    pub fn requested() -> Result<Self, UnknownIsa> {
        match env::var_os(VARIABLE) {
            Some(name) => Self::named(&name.to_string_lossy()),
            None => Ok(Self::fastest()),
        }
    }

    /// The set that is chosen where none is named.
    fn fastest() -> Self {
        #[cfg(target_arch = "x86_64")]
        let slow_pairs = x86::slow_pairs();
        #[cfg(not(target_arch = "x86_64"))]
        let slow_pairs = false;
        preferred(Self::available(), slow_pairs)
    }

    /// The set of a name, where this machine has it.
    pub fn named(name: &str) -> Result<Self, UnknownIsa> {
        let all = Self::available();
        all.iter().copied().find(|isa| isa.name() == name).ok_or_else(|| UnknownIsa {
            given: name.to_owned(),
            known: all.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", "),
        })
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Amx(_) => "amx-bf16",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Bf16(_) => "avx512-bf16",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Vnni(_) => "avx512-vnni",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(_) => "avx2",
            #[cfg(target_arch = "aarch64")]
            Set::Neon(_) => "neon",
            Set::Portable => "portable",
            Set::PortableBf16 => "portable-bf16",
            Set::PortableTiles => "portable-tiles",
        }
    }

    /// The smallest set with the same vectors: the same for everything but products of bytes and of
    /// bf16.
    pub fn vectors(self) -> Self {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Amx(token) => Self(Set::Avx512(token.dots().vectors())),
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Bf16(token) => Self(Set::Avx512(token.vectors())),
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Vnni(token) => Self(Set::Avx512(token.vectors())),
            Set::PortableBf16 | Set::PortableTiles => Self::PORTABLE,
            _ => self,
        }
    }

    /// The best set that has the same vectors and products of bytes, and no products of bf16.
    pub fn without_bf16(self) -> Self {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Amx(token) => Self(Set::Avx512Vnni(token.dots().vnni())),
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Bf16(token) => Self(Set::Avx512Vnni(token.vnni())),
            Set::PortableBf16 | Set::PortableTiles => Self::PORTABLE,
            _ => self,
        }
    }

    /// f32 in one of its vectors.
    pub fn lanes(self) -> usize {
        struct Width;
        impl Vectorised for Width {
            type Output = usize;
            #[inline(always)]
            fn run<S: Simd>(self, _: S) -> usize {
                S::LANES
            }
        }
        self.run(Width)
    }

    /// Does work on its vectors.
    #[inline(always)]
    pub fn run<W: Vectorised>(self, work: W) -> W::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Amx(token) => token.dots().vectors().run(Floats(work)),
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Bf16(token) => token.vectors().run(Floats(work)),
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Vnni(token) => token.vectors().run(Floats(work)),
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(token) => token.run(Floats(work)),
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(token) => token.run(Floats(work)),
            #[cfg(target_arch = "aarch64")]
            Set::Neon(token) => token.run(Floats(work)),
            Set::Portable | Set::PortableBf16 | Set::PortableTiles => work.run(Portable),
        }
    }

    /// Does work on its products of bytes.
    #[inline(always)]
    pub fn run_bytes<W: ByteWork>(self, work: W) -> W::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Amx(token) => token.dots().vnni().run(OfBytes(work)),
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Bf16(token) => token.vnni().run(OfBytes(work)),
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Vnni(token) => token.run(OfBytes(work)),
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(token) => token.avx2().run(OfBytes(work)),
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(token) => token.run(OfBytes(work)),
            #[cfg(target_arch = "aarch64")]
            Set::Neon(token) => token.run(OfBytes(work)),
            Set::Portable | Set::PortableBf16 | Set::PortableTiles => work.run(Portable),
        }
    }

    /// What it multiplies bf16 with.
    pub fn bf16_products(self) -> Bf16Products {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Amx(_) => Bf16Products::Tiles,
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Bf16(_) => Bf16Products::Dots,
            Set::PortableTiles => Bf16Products::Tiles,
            Set::PortableBf16 => Bf16Products::Dots,
            _ => Bf16Products::None,
        }
    }

    /// Whether it multiplies in bf16, activations rounded to it.
    pub fn multiplies_bf16(self) -> bool {
        self.bf16_products() != Bf16Products::None
    }

    /// Does work on its dot products of bf16; on their slow model where it has no instructions.
    #[inline(always)]
    pub fn run_bf16<W: Bf16Work>(self, work: W) -> W::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Amx(token) => token.dots().run(OfPairs(work)),
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Bf16(token) => token.run(OfPairs(work)),
            _ => OfPairs(work).run(Portable),
        }
    }

    /// Does work on its tiles of bf16; on their slow model where it has none.
    #[inline(always)]
    pub fn run_tiles<W: TileWork>(self, work: W) -> W::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Amx(token) => token.run(OfTiles(work)),
            _ => OfTiles(work).run(Portable),
        }
    }

    /// Compares what it computes with what the portable set does.
    fn check(self, portable: &Outcomes) -> Result<(), Mismatch> {
        self.run(VectorCheck).compare(&portable.vectors)?;
        self.run_bytes(ByteCheck).compare(&portable.bytes)?;
        if self.multiplies_bf16() {
            self.run_bf16(Bf16Check).compare(&portable.bf16)?;
        }
        if self.bf16_products() == Bf16Products::Tiles {
            self.run_tiles(TileCheck).compare(&portable.tiles)?;
        }
        Ok(())
    }
}

/// Results of the checks on the portable set.
struct Outcomes {
    vectors: Outcome,
    bytes: Outcome,
    bf16: Outcome,
    tiles: Outcome,
}

impl Outcomes {
    fn portable() -> Self {
        let portable = Isa::PORTABLE;
        Self {
            vectors: portable.run(VectorCheck),
            bytes: portable.run_bytes(ByteCheck),
            bf16: portable.run_bf16(Bf16Check),
            tiles: portable.run_tiles(TileCheck),
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Isa({self})")
    }
}

/// The sets that the processor says it has, best first.
fn detected() -> Vec<Isa> {
    let mut sets = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        sets.extend(amx::Amx::detect().map(Set::Amx));
        sets.extend(x86::Avx512Bf16::detect().map(Set::Avx512Bf16));
        sets.extend(x86::Avx512Vnni::detect().map(Set::Avx512Vnni));
        sets.extend(x86::Avx512::detect().map(Set::Avx512));
        sets.extend(x86::Avx2::detect().map(Set::Avx2));
    }
    #[cfg(target_arch = "aarch64")]
    sets.extend(neon::Neon::detect().map(Set::Neon));
    sets.push(Set::Portable);
    sets.into_iter().map(Isa).collect()
}

/// Those of `sets` that pass `check`, in order; the others are logged.
fn sound<T: Copy + fmt::Display>(
    sets: Vec<T>,
    check: impl Fn(T) -> Result<(), Mismatch>,
) -> Vec<T> {
    let passes = |&set: &T| {
        check(set)
            .inspect_err(|error| tracing::error!("instruction set {set} is not used: {error}"))
            .is_ok()
    };
    sets.into_iter().filter(passes).collect()
}

/// Defines a function on slices in plain loops that is compiled once per instruction set and runs on
/// [`Isa::chosen`]. All sets give the same bits: the operations and their order are the source's.
///
/// ```
/// ladle::vectorised! {
///     /// x ← x · factor.
///     fn scale<'a>(x: &'a mut [f32], factor: f32) {
///         x.iter_mut().for_each(|x| *x *= factor);
///     }
/// }
/// let mut x = [1.0, 2.0];
/// scale(&mut x, 3.0);
/// assert_eq!(x, [3.0, 6.0]);
/// ```
#[macro_export]
macro_rules! vectorised {
    (
        $(#[$meta:meta])*
        fn $name:ident<$a:lifetime>($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)?
        $body:block
    ) => {
        $(#[$meta])*
        fn $name<$a>($($argument: $type),*) $(-> $result)? {
            struct Work<$a> {
                $($argument: $type),*
            }

            impl<$a> $crate::simd::Vectorised for Work<$a> {
                type Output = $crate::vectorised!(@ $($result)?);

                #[inline(always)]
                fn run<S: $crate::simd::Simd>(self, _: S) -> Self::Output {
                    // Arguments of a function may not overlap, which fields may.
                    #[inline(always)]
                    fn body<$a>($($argument: $type),*) $(-> $result)? $body
                    body($(self.$argument),*)
                }
            }

            $crate::simd::Isa::chosen().run(Work { $($argument),* })
        }
    };
    (@) => { () };
    (@ $result:ty) => { $result };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_dot_products_of_bf16_are_left_to_the_next_set_and_tiles_are_not() {
        let (tiles, pairs, floats) = (Isa::PORTABLE_TILES, Isa::PORTABLE_BF16, Isa::PORTABLE);
        assert_eq!(preferred(&[tiles, pairs, floats], true), tiles);
        assert_eq!(preferred(&[pairs, floats], true), floats);
        assert_eq!(preferred(&[pairs, floats], false), pairs);
    }

    #[test]
    fn a_set_that_fails_its_check_is_left_out_and_the_next_one_is_the_best() {
        let wrong = Mismatch { operation: "sums", index: 3, expected: 1, got: 0 };
        let check = |set: &str| if set == "wrong" { Err(wrong) } else { Ok(()) };
        assert_eq!(sound(vec!["wrong", "right", "portable"], check), ["right", "portable"]);
        assert_eq!(wrong.to_string(), "sums: value 3 has the bits 00000000, expected 00000001");
    }
}
