//! Whole merged models in device memory, in a cache that counts their bytes.

use std::{
    any::Any,
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    resident::Resident,
    table::{Dense, LowRank, Table, Tensor},
};
use crate::{
    kernels::{
        Dtype, HostTensor,
        cuda::{
            CudaKernels, Device, DeviceError, Shape, Urgency, Weight,
            device::launch,
            memory::{Memory, Recycled, bytes_of},
        },
    },
    merge::{
        MergeError,
        cache::{Build, Cache},
        fused::MergedModel,
        plan::SoupPlan,
        slab::Layout,
    },
    model::config::ModelConfig,
    preference::ModelKey,
};

/// Where the sources of merges are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sources {
    /// All in device memory.
    Resident,
    /// Full-rank ones in host memory; every merge copies them through two staging areas of this
    /// many bytes each, at least [`largest_staging`].
    Streamed {
        /// Bytes of one area.
        staging: usize,
    },
}

/// The model of one c in device memory.
pub type DeviceModel = MergedModel<Weight>;

/// The merged models of one soup on a device.
pub type DeviceCache<D> = Cache<DeviceBuilder<D>>;

/// Memory of merged models, handed from one to the next: allocating and freeing device memory would
/// stall decoding.
struct Slabs<D: Device> {
    device: Arc<D>,
    free: Mutex<Vec<D::Buffer>>,
}

impl<D: Device> Slabs<D> {
    fn free(&self) -> std::sync::MutexGuard<'_, Vec<D::Buffer>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A slab in use.
struct Slab<D: Device> {
    buffer: Option<D::Buffer>,
    home: Arc<Slabs<D>>,
}

impl<D: Device> Drop for Slab<D> {
    fn drop(&mut self) {
        self.home.free().extend(self.buffer.take());
    }
}

/// One or more launches: tables on the device, and what must be copied there first.
struct Group<D: Device> {
    tensors: Arc<Recycled<D>>,
    dense: Arc<Recycled<D>>,
    low_rank: Arc<Recycled<D>>,
    dense_tasks: (Arc<Recycled<D>>, usize),
    low_rank_tasks: (Arc<Recycled<D>>, usize),
    /// Sources and their offsets in the staging area.
    copies: Vec<(HostTensor, usize)>,
}

/// A staging area with its own order of work: while the device merges from one, the host fills the
/// other.
struct Lane<D: Device> {
    stream: Arc<D::Stream>,
    pinned: D::Pinned,
    staging: D::Buffer,
}

/// `Merge` of merge.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Arguments {
    tensors: u64,
    dense: u64,
    low_rank: u64,
    tasks: u64,
    values: u64,
    out: u64,
    beyond: u64,
}

/// The arguments that change from merge to merge.
#[derive(Clone, Copy)]
struct Target {
    /// The coefficients on the device, one per term.
    values: u64,
    /// The merged model.
    out: u64,
    /// A word on the device: the first byte in `out` of a value that is not finite.
    beyond: u64,
}

/// [`Target::beyond`] where all values are finite; as in merge.cu.
const NONE: u64 = u64::MAX;

/// Merges the models of one soup on a device, beside the stream that decodes.
pub struct DeviceBuilder<D: Device> {
    device: Arc<D>,
    plan: SoupPlan,
    layout: Layout,
    config: ModelConfig,
    stream: Arc<D::Stream>,
    memory: Memory<D>,
    groups: Vec<Group<D>>,
    lanes: Mutex<Vec<Lane<D>>>,
    slabs: Arc<Slabs<D>>,
    /// What the tables point at: device memory stays mapped while a weight lives.
    keep_alive: Vec<Weight>,
}

/// Alignment of a source in a staging area.
const ALIGN: usize = 256;

fn aligned(bytes: usize) -> usize {
    bytes.div_ceil(ALIGN) * ALIGN
}

/// Bytes of the full-rank sources of a tensor, as they are staged.
fn staged(tensor: &crate::merge::plan::TensorPlan) -> usize {
    tensor.dense.iter().map(|term| aligned(term.tensor.bytes().len())).sum()
}

impl<D: Device> DeviceBuilder<D> {
    /// A builder. `resident` holds what the decoder has uploaded already.
    pub fn new(
        kernels: &CudaKernels<D>,
        resident: &Resident,
        plan: SoupPlan,
        config: ModelConfig,
        sources: Sources,
    ) -> Result<Self, MergeError> {
        let device = kernels.device().clone();
        let layout = Layout::new(&plan, None)?;
        let stream = Arc::new(device.stream(Urgency::Background)?);
        let memory = Memory::new(device.clone(), stream.clone());
        let slabs = Arc::new(Slabs { device: device.clone(), free: Mutex::default() });
        let mut builder = Self {
            device,
            plan,
            layout,
            config,
            stream,
            memory,
            groups: Vec::new(),
            lanes: Mutex::default(),
            slabs,
            keep_alive: Vec::new(),
        };
        let mut bases = Vec::new();
        if let Sources::Streamed { staging } = sources {
            let mut lanes = Vec::new();
            for _ in 0..2 {
                let lane = Lane {
                    stream: Arc::new(builder.device.stream(Urgency::Background)?),
                    pinned: builder.device.pinned(staging)?,
                    staging: builder.device.allocate(staging)?,
                };
                bases.push((builder.device.address(&lane.staging), staging));
                lanes.push(lane);
            }
            builder.lanes = Mutex::new(lanes);
        }
        builder.fill(kernels, resident, &bases)?;
        // The tables are read from other streams.
        builder.device.synchronize(&builder.stream)?;
        kernels.synchronize()?;
        Ok(builder)
    }

    /// Makes the groups: one where the sources stay, else as many tensors as fit an area.
    fn fill(
        &mut self,
        kernels: &CudaKernels<D>,
        resident: &Resident,
        bases: &[(u64, usize)],
    ) -> Result<(), MergeError> {
        let mut table = Table::default();
        let mut copies: Vec<(HostTensor, usize)> = Vec::new();
        let mut used = 0;
        let plan = self.plan.clone();
        let places = self.layout.places().to_vec();
        for (tensor, place) in plan.tensors().iter().zip(&places) {
            let mut addresses = Vec::with_capacity(tensor.dense.len());
            if let Some(&(_, size)) = bases.first()
                && used + staged(tensor) > size
                && !copies.is_empty()
            {
                self.close(std::mem::take(&mut table), std::mem::take(&mut copies))?;
                used = 0;
            }
            for term in &tensor.dense {
                if bases.is_empty() {
                    let weight = resident.weight(kernels, &term.tensor)?;
                    addresses.push(weight.address());
                    self.keep_alive.push(weight);
                } else {
                    let (base, _) = bases[self.groups.len() % bases.len()];
                    addresses.push(base + used as u64);
                    copies.push((term.tensor.clone(), used));
                    used += aligned(term.tensor.bytes().len());
                }
            }
            let mut factors = Vec::with_capacity(tensor.low_rank.len());
            for term in &tensor.low_rank {
                let down = resident.weight(kernels, &term.lora.down)?;
                let up = resident.weight(kernels, &term.lora.up)?;
                factors.push((down.address(), up.address()));
                self.keep_alive.extend([down, up]);
            }
            table.push(tensor, (place.offset, place.dtype), &addresses, &factors);
        }
        self.close(table, copies)
    }

    fn close(&mut self, table: Table, copies: Vec<(HostTensor, usize)>) -> Result<(), MergeError> {
        let Table { tensors, dense, low_rank, dense_tasks, low_rank_tasks } = table;
        let upload = |bytes: &[u8]| self.memory.upload(bytes).map(Arc::new);
        let group = Group {
            tensors: upload(bytes_of::<Tensor>(&tensors))?,
            dense: upload(bytes_of::<Dense>(&dense))?,
            low_rank: upload(bytes_of::<LowRank>(&low_rank))?,
            dense_tasks: (upload(bytes_of(&dense_tasks))?, dense_tasks.len() / 3),
            low_rank_tasks: (upload(bytes_of(&low_rank_tasks))?, low_rank_tasks.len() / 3),
            copies,
        };
        self.groups.push(group);
        Ok(())
    }

    fn slab(&self) -> Result<Slab<D>, MergeError> {
        let free = self.slabs.free().pop();
        let buffer = match free {
            Some(buffer) => buffer,
            None => self.device.allocate(self.layout.bytes().max(16))?,
        };
        Ok(Slab { buffer: Some(buffer), home: self.slabs.clone() })
    }

    /// Merges at the coefficients `values` (one per term) into `out`; complete on return. Refuses
    /// values that their storage type cannot hold.
    fn merge(&self, values: &[f32], out: u64) -> Result<(), MergeError> {
        // A plan without terms has no coefficients, but the kernels get an address.
        let values = if values.is_empty() { &[0.0] } else { values };
        let values = self.memory.upload(bytes_of(values))?;
        let beyond = self.memory.upload(&NONE.to_ne_bytes())?;
        self.run(Target { values: values.address(), out, beyond: beyond.address() })?;
        let mut first = [0; size_of::<u64>()];
        // SAFETY: the buffer holds one word, which no launch writes any more.
        unsafe { self.device.download(&self.stream, beyond.address(), &mut first)? };
        match u64::from_ne_bytes(first) {
            NONE => Ok(()),
            byte => Err(self.out_of_range(byte as usize)),
        }
    }

    /// The error of a model whose value at this byte is not finite.
    fn out_of_range(&self, byte: usize) -> MergeError {
        let places = self.layout.places();
        let index = places.partition_point(|place| place.offset <= byte).saturating_sub(1);
        let (tensor, place) = (&self.plan.tensors()[index], &places[index]);
        let at = (byte - place.offset) / place.dtype.size();
        MergeError::Range { tensor: tensor.name.clone(), dtype: place.dtype, at }
    }

    /// Launches all groups and waits for them.
    fn run(&self, target: Target) -> Result<(), DeviceError> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if lanes.is_empty() {
            for group in &self.groups {
                self.launch(&self.stream, group, target)?;
            }
            return self.device.synchronize(&self.stream);
        }
        self.device.synchronize(&self.stream)?;
        let count = lanes.len();
        for (index, group) in self.groups.iter().enumerate() {
            let Lane { stream, pinned, staging } = &mut lanes[index % count];
            self.device.synchronize(stream)?;
            let mut end = 0;
            for (tensor, offset) in &group.copies {
                let bytes = tensor.bytes();
                end = offset + bytes.len();
                pinned.as_mut()[*offset..end].copy_from_slice(bytes);
            }
            let base = self.device.address(staging);
            // SAFETY: the area is that long, and is used again only once its stream is idle.
            unsafe { self.device.upload(stream, base, &(*pinned).as_ref()[..end])? };
            self.launch(stream, group, target)?;
        }
        for lane in lanes.iter() {
            self.device.synchronize(&lane.stream)?;
        }
        Ok(())
    }

    fn launch(
        &self,
        stream: &D::Stream,
        group: &Group<D>,
        Target { values, out, beyond }: Target,
    ) -> Result<(), DeviceError> {
        let parts = [
            ("merge_dense", &group.dense_tasks, 256),
            ("merge_low_rank", &group.low_rank_tasks, 128),
        ];
        for (kernel, (tasks, count), threads) in parts {
            if *count == 0 {
                continue;
            }
            let arguments = Arguments {
                tensors: group.tensors.address(),
                dense: group.dense.address(),
                low_rank: group.low_rank.address(),
                tasks: tasks.address(),
                values,
                out,
                beyond,
            };
            // SAFETY: the tables were made of the plan's tensors, whose sources are where they say,
            // and the layout keeps every output within the slab.
            unsafe { launch!(self.device, stream, kernel, Shape::of(*count, threads), arguments)? };
        }
        Ok(())
    }
}

impl<D: Device> Build for DeviceBuilder<D> {
    type Key = ModelKey;
    type Value = DeviceModel;

    fn bytes(&self) -> usize {
        self.layout.bytes()
    }

    fn relieve(&self) {
        self.slabs.free().clear();
    }

    fn build(&self, key: &ModelKey) -> Result<DeviceModel, MergeError> {
        let slab = self.slab()?;
        let address = slab.buffer.as_ref().map_or(0, |buffer| self.slabs.device.address(buffer));
        let values = self.plan.term_values(&key.coefficients())?;
        self.merge(&values, address)?;
        let slab: Arc<dyn Any + Send + Sync> = Arc::new(slab);
        let mut tensors = HashMap::new();
        for (tensor, place) in self.plan.tensors().iter().zip(self.layout.places()) {
            let at = address + place.offset as u64;
            let weight = Weight::new(at, place.dtype, tensor.shape().to_vec(), slab.clone());
            tensors.insert(tensor.name.clone(), weight);
        }
        MergedModel::new(self.config.clone(), tensors)
    }
}

/// Bytes of a staging area that every tensor of the plan fits.
pub fn largest_staging(plan: &SoupPlan) -> usize {
    plan.tensors().iter().map(staged).max().unwrap_or(0).max(ALIGN)
}

/// Storage type of a model's products: that of its embedding.
pub fn compute_dtype(plan: &SoupPlan) -> Dtype {
    plan.tensors().first().map_or(Dtype::F32, |tensor| tensor.dtype)
}
