//! Memory of whole merged models: mapped once, huge pages where the system gives them, and handed
//! from one model to the next, so that a merge meets no page fault after the first.

use std::{
    fmt, io,
    sync::{Arc, Mutex, PoisonError},
};

use memmap2::MmapMut;

use super::plan::SoupPlan;
use crate::{kernels::Dtype, memory};

/// Alignment of every tensor in a slab: a cache line, and the widest vector register.
const ALIGN: usize = 64;

/// Why a slab cannot be taken or filled.
#[derive(Debug, thiserror::Error)]
pub enum SlabError {
    /// As many slabs as allowed are in use.
    #[error("all {limit} slabs for merged models are in use")]
    Exhausted {
        /// Most slabs at a time.
        limit: usize,
    },
    /// The system refuses the memory.
    #[error("no memory for a merged model of {bytes} bytes: {source}")]
    Map {
        /// Bytes of a slab.
        bytes: usize,
        /// The refusal.
        source: io::Error,
    },
    /// A slab is too small for the model.
    #[error("a slab of {got} bytes for a merged model of {expected}")]
    Length {
        /// Bytes of the model.
        expected: usize,
        /// Bytes of the slab.
        got: usize,
    },
    /// The model's size overflows the address space.
    #[error("merged tensor {tensor}: size overflows")]
    Overflow {
        /// The tensor at which it does.
        tensor: String,
    },
}

/// Where a tensor lies in a slab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// First byte, a multiple of 64.
    pub offset: usize,
    /// Bytes.
    pub len: usize,
    pub dtype: Dtype,
}

/// Where every tensor of a merged model lies; one layout per soup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    places: Vec<Place>,
    bytes: usize,
}

impl Layout {
    /// Lays the plan's tensors out in order, each in the base's storage type, or all
    /// in `dtype`.
    pub fn new(plan: &SoupPlan, dtype: Option<Dtype>) -> Result<Self, SlabError> {
        let mut bytes = 0usize;
        let mut places = Vec::with_capacity(plan.tensors().len());
        for tensor in plan.tensors() {
            let overflow = || SlabError::Overflow { tensor: tensor.name.clone() };
            let dtype = dtype.unwrap_or(tensor.dtype);
            let len = dtype.bytes(tensor.shape()).ok_or_else(overflow)?;
            let offset = bytes.checked_next_multiple_of(ALIGN).ok_or_else(overflow)?;
            bytes = offset.checked_add(len).ok_or_else(overflow)?;
            places.push(Place { offset, len, dtype });
        }
        Ok(Self { places, bytes })
    }

    /// Places, in the order of the plan's tensors.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// Bytes of a whole model.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// A bounded set of equal slabs, mapped when first needed and never given back to the system while
/// the pool or a slab lives.
#[derive(Clone)]
pub struct SlabPool(Arc<Slabs>);

struct Slabs {
    bytes: usize,
    limit: usize,
    state: Mutex<State>,
}

struct State {
    free: Vec<MmapMut>,
    mapped: usize,
}

impl SlabPool {
    /// A pool of at most `limit` slabs of `bytes` each; nothing is mapped yet.
    pub fn new(bytes: usize, limit: usize) -> Self {
        let state = Mutex::new(State { free: Vec::new(), mapped: 0 });
        Self(Arc::new(Slabs { bytes, limit, state }))
    }

    /// A slab: one that was given back, else a new one. What a recycled slab holds is left over.
    pub fn take(&self) -> Result<Slab, SlabError> {
        let Slabs { bytes, limit, .. } = *self.0;
        let recycled = {
            let mut state = self.0.lock();
            let recycled = state.free.pop();
            if recycled.is_none() {
                if state.mapped == limit {
                    return Err(SlabError::Exhausted { limit });
                }
                state.mapped += 1;
            }
            recycled
        };
        let map = match recycled {
            Some(map) => map,
            None => memory::huge(bytes).map_err(|source| {
                self.0.lock().mapped -= 1;
                SlabError::Map { bytes, source }
            })?,
        };
        Ok(Slab { map: Some(map), pool: self.0.clone() })
    }

    /// Slabs mapped, free or in use.
    pub fn mapped(&self) -> usize {
        self.0.lock().mapped
    }

    /// Slabs waiting to be used again.
    pub fn free(&self) -> usize {
        self.0.lock().free.len()
    }
}

impl Slabs {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Memory for one merged model; dropping it gives it back to its pool.
pub struct Slab {
    /// Taken only by `drop`.
    map: Option<MmapMut>,
    pool: Arc<Slabs>,
}

impl AsRef<[u8]> for Slab {
    fn as_ref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}

impl AsMut<[u8]> for Slab {
    fn as_mut(&mut self) -> &mut [u8] {
        self.map.as_deref_mut().unwrap_or_default()
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        self.pool.lock().free.extend(self.map.take());
    }
}

impl fmt::Debug for Slab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slab({} bytes)", self.as_ref().len())
    }
}
