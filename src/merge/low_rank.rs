//! Low-rank terms of one linear layer as one product: `Σⱼ cⱼsⱼBⱼAⱼ x` with all A stacked along their
//! rows and all B along their columns.

use std::sync::Arc;

use crate::{
    kernels::{ColumnScale, Dtype, HostTensor, host::HostError},
    model::linear::LowRank,
    soup::LoraModule,
};

/// One low-rank term: coefficient · [`LoraModule`].
#[derive(Debug, Clone)]
pub struct LowRankTerm {
    /// The factors A `[r, in]` and B `[out, r]` with LoRA's scale s.
    pub lora: LoraModule,
    /// Index of its coefficient; `None` is 1 whatever c is.
    pub term: Option<usize>,
}

impl LowRankTerm {
    pub fn rank(&self) -> usize {
        self.lora.rank()
    }
}

/// The sum of the ranks.
pub fn total_rank(terms: &[LowRankTerm]) -> usize {
    terms.iter().map(LowRankTerm::rank).sum()
}

/// Stacks terms of one layer: A as `[ranks, in]`, B as `[out, ranks]`, zeros filling up to `ranks`
/// (at least [`total_rank`]). Each side keeps its storage type where the terms share one, else it
/// is widened to f32; either is exact. The scales are beside the factors, not in them.
pub fn stack(terms: &[LowRankTerm], ranks: usize) -> Result<LowRank<HostTensor>, HostError> {
    let (out, width) = terms.first().map_or((0, 0), |term| term.lora.shape());
    let downs: Vec<&HostTensor> = terms.iter().map(|term| &term.lora.down).collect();
    let ups: Vec<&HostTensor> = terms.iter().map(|term| &term.lora.up).collect();
    let mut scales = Vec::with_capacity(terms.len());
    let mut start = 0;
    for term in terms {
        let columns = start..start + term.rank();
        start = columns.end;
        scales.push(ColumnScale { columns, term: term.term, factor: term.lora.scale as f32 });
    }
    Ok(LowRank {
        down: interleave(&downs, 1, vec![ranks, width])?,
        up: interleave(&ups, out, vec![out, ranks])?,
        scales,
    })
}

/// Cuts each part into `runs` equal runs and lays first the first run of every part, then the
/// second, and so on; zeros fill each up to its share of `shape`.
fn interleave(
    parts: &[&HostTensor],
    runs: usize,
    shape: Vec<usize>,
) -> Result<HostTensor, HostError> {
    let mut dtypes = parts.iter().map(|part| part.dtype());
    let first = dtypes.next().unwrap_or(Dtype::F32);
    let wide: Vec<HostTensor>;
    let (parts, dtype) = if dtypes.all(|dtype| dtype == first) {
        (parts.to_vec(), first)
    } else {
        let widen =
            |part: &&HostTensor| HostTensor::from_f32(&part.to_f32(), part.shape().to_vec());
        wide = parts.iter().map(widen).collect::<Result<_, _>>()?;
        (wide.iter().collect(), Dtype::F32)
    };
    let size = shape.iter().product::<usize>() * dtype.size();
    let mut bytes = Vec::with_capacity(size);
    for run in 0..runs {
        for part in &parts {
            let len = part.bytes().len() / runs;
            bytes.extend_from_slice(&part.bytes()[run * len..(run + 1) * len]);
        }
        bytes.resize(size / runs * (run + 1), 0);
    }
    HostTensor::new(Arc::new(bytes), 0..size, dtype, shape)
}
