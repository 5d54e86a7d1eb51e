//! The merged weights of one c: every source is read once, every output written once.
//!
//! `out = round(Σ cₖθₖ + Σ cⱼsⱼBⱼAⱼ)`, accumulated in f32 in the order of the plan and rounded once
//! to the storage type. A term whose coefficient is exactly 0 is not read, and a single term with
//! coefficient 1 is copied bit for bit: one-hot coefficients give that model's own bits.

use std::{
    ops::Range,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Instant,
};

use half::{bf16, f16};
use rayon::prelude::*;

use super::{
    MergeError,
    low_rank::LowRankTerm,
    plan::{DenseTerm, SoupPlan, TensorPlan},
    slab::{Layout, Slab, SlabError, SlabPool},
    sum::{self, StorageRange},
};
use crate::{
    kernels::{Dtype, HostTensor, Stored},
    preference::Coefficients,
    simd::{Element, Isa},
    soup::weights::first_non_finite,
    turns::Pace,
};

/// Elements per task where sources are streamed straight to the output.
const STREAMED: usize = 64 << 10;

/// Elements per task where sums are kept in f32 between terms: 64 KiB, within the L2 cache.
const BUFFERED: usize = 16 << 10;

/// Merges a soup's tensors at any c. Parallel on the rayon pool it is called in.
#[derive(Debug, Clone)]
pub struct Merger {
    plan: SoupPlan,
    layout: Layout,
    isa: Isa,
}

impl Merger {
    /// A merger into tensors of the base's storage types, or all of `dtype`. Quantised weights are
    /// refused: their sums would have to be quantised anew.
    pub fn new(plan: SoupPlan, dtype: Option<Dtype>) -> Result<Self, MergeError> {
        MergeError::refuse_quantised(&plan)?;
        let layout = Layout::new(&plan, dtype)?;
        Ok(Self { plan, layout, isa: Isa::chosen() })
    }

    /// The same on another instruction set; the bits do not change.
    pub fn with_isa(self, isa: Isa) -> Self {
        Self { isa, ..self }
    }

    pub fn plan(&self) -> &SoupPlan {
        &self.plan
    }

    /// Where the merged tensors lie.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Merges all tensors at c into a slab of [`Layout::bytes`], at a pace or at once.
    pub fn merge(
        &self,
        c: &Coefficients,
        slab: &mut Slab,
        pace: Option<&Pace>,
    ) -> Result<(), MergeError> {
        let values = self.plan.term_values(c)?;
        let recipes: Vec<Recipe<'_>> =
            self.plan.tensors().iter().map(|tensor| Recipe::new(tensor, &values)).collect();
        let mut tasks = Vec::new();
        let mut rest = slab.as_mut();
        if rest.len() < self.layout.bytes() {
            return Err(SlabError::Length { expected: self.layout.bytes(), got: rest.len() }.into());
        }
        let mut at = 0;
        for (recipe, place) in recipes.iter().zip(self.layout.places()) {
            let (_, from) = std::mem::take(&mut rest).split_at_mut(place.offset - at);
            let (out, after) = from.split_at_mut(place.len);
            (rest, at) = (after, place.offset + place.len);
            recipe.split(place.dtype, out, &mut tasks);
        }
        match pace {
            None => run(self.isa, tasks),
            Some(pace) => {
                let tasks = Mutex::new(tasks.into_iter());
                pace.run(|until| run_until(self.isa, &tasks, until))
            }
        }
    }

    /// Merges one tensor at c into a tensor of its own.
    pub fn tensor(&self, name: &str, c: &Coefficients) -> Result<HostTensor, MergeError> {
        let missing = || MergeError::Missing { tensor: name.to_owned() };
        let mut pairs = self.plan.tensors().iter().zip(self.layout.places());
        let (tensor, place) = pairs.find(|(tensor, _)| tensor.name == name).ok_or_else(missing)?;
        merge_tensor_on(self.isa, tensor, &self.plan.term_values(c)?, place.dtype)
    }
}

/// Merges one tensor, with the value of each term of its plan, into one of `dtype`.
pub fn merge_tensor(
    tensor: &TensorPlan,
    values: &[f32],
    dtype: Dtype,
) -> Result<HostTensor, MergeError> {
    let quantised = |dense: &DenseTerm| dense.tensor.dtype().blocks().is_some();
    if let Some(dense) = tensor.dense.iter().find(|dense| quantised(dense)) {
        let (tensor, dtype) = (tensor.name.clone(), dense.tensor.dtype());
        return Err(MergeError::Quantised { tensor, dtype });
    }
    merge_tensor_on(Isa::chosen(), tensor, values, dtype)
}

fn merge_tensor_on(
    isa: Isa,
    tensor: &TensorPlan,
    values: &[f32],
    dtype: Dtype,
) -> Result<HostTensor, MergeError> {
    let overflow = || SlabError::Overflow { tensor: tensor.name.clone() };
    let len = dtype.bytes(tensor.shape()).ok_or_else(overflow)?;
    let recipe = Recipe::new(tensor, values);
    let mut slab = SlabPool::new(len, 1).take()?;
    let mut tasks = Vec::new();
    recipe.split(dtype, &mut slab.as_mut()[..len], &mut tasks);
    run(isa, tasks)?;
    view(slab.into(), 0..len, dtype, tensor)
}

fn run(isa: Isa, tasks: Vec<Chunk<'_>>) -> Result<(), MergeError> {
    tasks
        .into_par_iter()
        .try_for_each_init(Scratch::default, |scratch, task| task.run(isa, scratch))
}

/// Runs tasks on all threads of the pool until that instant; returns whether there may be more.
fn run_until<'a>(
    isa: Isa,
    tasks: &Mutex<impl Iterator<Item = Chunk<'a>> + Send>,
    until: Instant,
) -> Result<bool, MergeError> {
    let next = || tasks.lock().unwrap_or_else(PoisonError::into_inner).next();
    let outcomes: Vec<Result<bool, MergeError>> = rayon::broadcast(|_| {
        let mut scratch = Scratch::default();
        while Instant::now() < until {
            let Some(task) = next() else { return Ok(false) };
            task.run(isa, &mut scratch)?;
        }
        Ok(true)
    });
    outcomes.into_iter().try_fold(false, |more, outcome| Ok(more | outcome?))
}

/// `factor · tensor` in `dtype`; a value outside the range of `dtype` is an error.
pub(super) fn rounded(
    name: &str,
    tensor: &HostTensor,
    factor: f64,
    dtype: Dtype,
) -> Result<HostTensor, MergeError> {
    let mut values = tensor.to_f32();
    values.iter_mut().for_each(|value| *value = (f64::from(*value) * factor) as f32);
    let refuse = |source| MergeError::Tensor { tensor: name.to_owned(), source };
    let rounded = HostTensor::rounded(&values, dtype, tensor.shape().to_vec()).map_err(refuse)?;
    match first_non_finite(&rounded) {
        None => Ok(rounded),
        Some(at) => Err(MergeError::Range { tensor: name.to_owned(), dtype, at }),
    }
}

/// A merged tensor as a view of the slab it was merged into.
pub(super) fn view(
    slab: Arc<Slab>,
    range: Range<usize>,
    dtype: Dtype,
    tensor: &TensorPlan,
) -> Result<HostTensor, MergeError> {
    HostTensor::new(slab, range, dtype, tensor.shape().to_vec())
        .map_err(|source| MergeError::Tensor { tensor: tensor.name.clone(), source })
}

/// A tensor's terms at one c, without those that are zero.
struct Recipe<'a> {
    name: &'a str,
    dense: Vec<(&'a HostTensor, f32)>,
    low_rank: Vec<(&'a LowRankTerm, f32)>,
    /// Ranks of all low-rank terms.
    ranks: usize,
    /// Row length: the last dimension.
    width: usize,
    /// The A factors in f32 and in [`sum::panels`], made by the first task that needs them.
    down: OnceLock<Vec<f32>>,
}

impl<'a> Recipe<'a> {
    fn new(tensor: &'a TensorPlan, values: &[f32]) -> Self {
        let value = |term: Option<usize>| term.map_or(1.0, |term| values[term]);
        let dense = tensor.dense.iter().map(|d| (&d.tensor, value(d.term)));
        let low_rank = tensor.low_rank.iter().map(|l| {
            let factor = f64::from(value(l.term)) * l.lora.scale;
            (l, factor as f32)
        });
        let low_rank: Vec<_> = low_rank.filter(|&(_, factor)| factor != 0.0).collect();
        Self {
            name: &tensor.name,
            dense: dense.filter(|&(_, c)| c != 0.0).collect(),
            ranks: low_rank.iter().map(|(term, _)| term.rank()).sum(),
            low_rank,
            width: tensor.shape().last().copied().unwrap_or(1).max(1),
            down: OnceLock::new(),
        }
    }

    /// Cuts the tensor's output into tasks: whole rows where there are low-rank terms.
    fn split<'t>(&'t self, dtype: Dtype, out: &'t mut [u8], tasks: &mut Vec<Chunk<'t>>) {
        let elements = if !self.low_rank.is_empty() {
            (BUFFERED / self.width).max(1).next_multiple_of(sum::TILE_ROWS) * self.width
        } else if self.dense.iter().all(|(tensor, _)| tensor.dtype() == dtype) {
            STREAMED
        } else {
            BUFFERED
        };
        let chunks = out.chunks_mut(elements * dtype.size()).enumerate();
        tasks.extend(chunks.map(|(i, out)| Chunk {
            recipe: self,
            start: i * elements,
            dtype,
            out,
        }));
    }

    /// Refuses elements of `out` (from `start` on) that are not finite, where there may be some.
    fn in_range<E: Element>(
        &self,
        suspected: bool,
        out: &[E],
        start: usize,
        dtype: Dtype,
    ) -> Result<(), MergeError> {
        let mut values = out.iter().map(|value| value.widen());
        let beyond = if suspected { values.position(|value| !value.is_finite()) } else { None };
        match beyond {
            Some(at) => {
                Err(MergeError::Range { tensor: self.name.to_owned(), dtype, at: start + at })
            }
            None => Ok(()),
        }
    }

    fn down(&self) -> &[f32] {
        self.down.get_or_init(|| {
            let rows: Vec<_> =
                self.low_rank.iter().map(|(term, _)| term.lora.down.to_f32()).collect();
            sum::panels(&rows.concat(), self.ranks)
        })
    }

    /// The B factors of the rows from `first`, times their coefficients: `[rows, ranks]`.
    fn up(&self, first: usize, rows: usize, up: &mut Vec<f32>) {
        up.clear();
        up.resize(rows * self.ranks, 0.0);
        let mut column = 0;
        for &(term, factor) in &self.low_rank {
            let rank = term.rank();
            let range = first * rank..(first + rows) * rank;
            let columns =
                up.chunks_exact_mut(self.ranks).map(|row| &mut row[column..column + rank]);
            match term.lora.up.dtype() {
                Dtype::F32 => scale::<f32>(&term.lora.up, range, factor, columns),
                Dtype::F16 => scale::<f16>(&term.lora.up, range, factor, columns),
                Dtype::Bf16 => scale::<bf16>(&term.lora.up, range, factor, columns),
                Dtype::Quantised(_) => unreachable!("refused by `Merger::new`"),
            }
            column += rank;
        }
    }
}

/// Fills rows with the elements of `range` times `factor`.
fn scale<'a, E: Stored>(
    tensor: &HostTensor,
    range: Range<usize>,
    factor: f32,
    rows: impl Iterator<Item = &'a mut [f32]>,
) {
    let mut values = tensor.as_slice::<E>().unwrap_or_default()[range].iter();
    for row in rows {
        row.iter_mut().zip(&mut values).for_each(|(to, value)| *to = value.widen() * factor);
    }
}

/// A run of elements of one tensor.
struct Chunk<'a> {
    recipe: &'a Recipe<'a>,
    /// First element.
    start: usize,
    dtype: Dtype,
    out: &'a mut [u8],
}

#[derive(Default)]
struct Scratch {
    sums: Vec<f32>,
    up: Vec<f32>,
}

impl Chunk<'_> {
    fn run(self, isa: Isa, scratch: &mut Scratch) -> Result<(), MergeError> {
        match self.dtype {
            Dtype::F32 => self.fill::<f32>(isa, scratch),
            Dtype::F16 => self.fill::<f16>(isa, scratch),
            Dtype::Bf16 => self.fill::<bf16>(isa, scratch),
            Dtype::Quantised(_) => unreachable!("refused by `Merger::new` and `merge_tensor`"),
        }
    }

    fn fill<E: Stored>(self, isa: Isa, scratch: &mut Scratch) -> Result<(), MergeError> {
        let Self { recipe, start, dtype, out } = self;
        let out = elements_mut::<E>(out);
        let limits = StorageRange::of(dtype);
        let range = start..start + out.len();
        if recipe.low_rank.is_empty() {
            let same: Option<Vec<(&[E], f32)>> = recipe
                .dense
                .iter()
                .map(|&(tensor, c)| {
                    tensor.as_slice::<E>().map(|source| (&source[range.clone()], c))
                })
                .collect();
            let done = same.and_then(|terms| sum::weighted_sum(isa, out, &terms, limits));
            if let Some(outside) = done {
                return recipe.in_range(outside, out, start, dtype);
            }
        }
        let Scratch { sums, up } = scratch;
        sums.clear();
        sums.resize(out.len(), 0.0);
        for (i, &(tensor, c)) in recipe.dense.iter().enumerate() {
            let first = i == 0;
            match tensor.dtype() {
                Dtype::F32 => add::<f32>(isa, sums, tensor, range.clone(), c, first),
                Dtype::F16 => add::<f16>(isa, sums, tensor, range.clone(), c, first),
                Dtype::Bf16 => add::<bf16>(isa, sums, tensor, range.clone(), c, first),
                Dtype::Quantised(_) => unreachable!("refused by `Merger::new`"),
            }
        }
        if !recipe.low_rank.is_empty() {
            let rows = out.len() / recipe.width;
            recipe.up(start / recipe.width, rows, up);
            sum::add_product(isa, sums, up, recipe.down(), recipe.width, recipe.ranks);
        }
        let outside = sum::round(isa, out, sums, limits);
        recipe.in_range(outside, out, start, dtype)
    }
}

fn add<E: Stored>(
    isa: Isa,
    sums: &mut [f32],
    tensor: &HostTensor,
    range: Range<usize>,
    c: f32,
    first: bool,
) {
    let source = &tensor.as_slice::<E>().unwrap_or_default()[range];
    sum::accumulate(isa, sums, source, c, first);
}

/// Output bytes as elements; slabs and their places are aligned to 64 bytes.
fn elements_mut<E: Element>(bytes: &mut [u8]) -> &mut [E] {
    // SAFETY: f32, f16 and bf16 take every bit pattern.
    let (before, elements, after) = unsafe { bytes.align_to_mut::<E>() };
    assert!(before.is_empty() && after.is_empty(), "whole, aligned elements");
    elements
}
