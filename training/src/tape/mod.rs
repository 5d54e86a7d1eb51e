//! Reverse-mode differentiation of the decoder on the CPU, in f32 but for products with [`Narrow`]
//! weights: forward and backward of training.
//!
//! [`Tape`] is a set of kernels. Each operation computes its values and, if a trained weight feeds it,
//! records a node: how the gradient of its result becomes gradients of its inputs. The backward
//! visits the nodes from the last to the first, adds gradients in place and frees each node's saved
//! values. candle's autograd, which the losses use, allocates a tensor and an addition for every use
//! of an activation.
//!
//! The trained weights are those of linear layers that candle tracks (`Var`s); everything else is
//! frozen. Batches are packed as [`crate::autograd`] describes; rows that no trained weight feeds can
//! be left out of them, and their keys and values given instead ([`Stored`]).

mod attend;
mod attention;
mod bias;
mod dropout;
mod kernels;
mod narrow;
mod product;
mod read;
mod rows;
mod stored;

use std::{cell::RefCell, collections::HashMap, sync::Arc};

use candle_core::{Tensor, TensorId};
use ladle::kernels::Result;

pub use dropout::Dropout;
pub use narrow::Narrow;
pub(crate) use product::{View, parallel_product};
pub(crate) use read::read;
pub(crate) use rows::{dot, max, sum, tanh};
pub use stored::{KeysAndValues, Stored};

/// An activation `[rows, width]`, row-major.
#[derive(Debug, Clone)]
pub struct Value {
    data: Arc<Vec<f32>>,
    rows: usize,
    width: usize,
    /// Its node; `None` if no trained weight feeds it.
    node: Option<usize>,
}

impl Value {
    /// A constant `[rows, width]`.
    pub fn constant(data: Vec<f32>, rows: usize, width: usize) -> Self {
        assert_eq!(data.len(), rows * width, "values of [{rows}, {width}]");
        Self { data: Arc::new(data), rows, width, node: None }
    }

    /// The values, row-major.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// Rows and columns.
    pub fn dims(&self) -> (usize, usize) {
        (self.rows, self.width)
    }

    /// The values, mutable; copied first if they are shared.
    fn take(self) -> Vec<f32> {
        Arc::try_unwrap(self.data).unwrap_or_else(|data| data.to_vec())
    }
}

/// How the gradient of a result becomes gradients of its inputs; `None` for a leaf.
type Node = Option<Box<dyn FnOnce(Vec<f32>, &mut Gradients) -> Result<()> + Send>>;

/// The kernels and the nodes that they recorded.
pub struct Tape {
    /// `None` if only values are computed.
    nodes: Option<RefCell<Vec<Node>>>,
    dropout: Option<Dropout>,
    narrow: Option<Arc<Narrow>>,
}

impl Tape {
    /// Kernels that record nodes.
    pub fn recording(dropout: Option<Dropout>) -> Self {
        Self { nodes: Some(RefCell::default()), dropout, narrow: None }
    }

    /// Kernels that only compute values.
    pub fn idle(dropout: Option<Dropout>) -> Self {
        Self { nodes: None, dropout, narrow: None }
    }

    /// The same, multiplying with the frozen matrices of `narrow` in bf16.
    pub fn narrowed(self, narrow: Option<Arc<Narrow>>) -> Self {
        Self { narrow, ..self }
    }

    /// An input whose gradient is wanted.
    pub fn leaf(&self, data: Vec<f32>, rows: usize, width: usize) -> Value {
        Value { node: self.push(|| None), ..Value::constant(data, rows, width) }
    }

    fn push(&self, node: impl FnOnce() -> Node) -> Option<usize> {
        let mut nodes = self.nodes.as_ref()?.borrow_mut();
        nodes.push(node());
        Some(nodes.len() - 1)
    }

    /// A result `[rows, width]`, with the node of `backward` if a trained weight feeds it
    /// (`learns`).
    fn result<F>(
        &self,
        (data, rows, width): (Vec<f32>, usize, usize),
        learns: bool,
        backward: impl FnOnce(&Arc<Vec<f32>>) -> F,
    ) -> Value
    where
        F: FnOnce(Vec<f32>, &mut Gradients) -> Result<()> + Send + 'static,
    {
        let data = Arc::new(data);
        let node = if learns { self.push(|| Some(Box::new(backward(&data)))) } else { None };
        Value { data, rows, width, node }
    }

    /// `run(x)` whose inner activations are not kept: the backward computes them again (Chen et al.
    /// 2016). `run` must give the same values each time.
    pub fn recomputed(
        &self,
        x: Value,
        run: impl Fn(&Self, Value) -> Result<Value> + Send + 'static,
    ) -> Result<Value> {
        if self.nodes.is_none() {
            return run(self, x);
        }
        let Value { data, rows, width, node } = x;
        let constant = Value { data: data.clone(), rows, width, node: None };
        let (dropout, narrow) = (self.dropout.clone(), self.narrow.clone());
        let y = run(&Self::idle(dropout.clone()).narrowed(narrow.clone()), constant)?;
        let (rows_out, width_out) = (y.rows, y.width);
        Ok(self.result((y.take(), rows_out, width_out), true, |_| {
            move |grad: Vec<f32>, gradients: &mut Gradients| {
                let tape = Self::recording(dropout).narrowed(narrow);
                let leaf = node.and_then(|_| tape.push(|| None));
                let y = run(&tape, Value { data, rows, width, node: leaf })?;
                let mut inner = Gradients {
                    values: Vec::new(),
                    weights: std::mem::take(&mut gradients.weights),
                };
                tape.run(y.node, grad, &mut inner)?;
                gradients.weights = inner.weights;
                if let Some(grad) = leaf.and_then(|leaf| inner.values[leaf].take()) {
                    gradients.give(node, grad);
                }
                Ok(())
            }
        }))
    }

    /// Gradients of the trained weights and leaves that feed `value`, given the gradient of `value`
    /// (row-major, of its shape).
    pub fn backward(self, value: &Value, grad: Vec<f32>) -> Result<Gradients> {
        assert_eq!(grad.len(), value.data.len(), "elements of the gradient");
        let mut gradients = Gradients::default();
        self.run(value.node, grad, &mut gradients)?;
        Ok(gradients)
    }

    fn run(self, from: Option<usize>, grad: Vec<f32>, gradients: &mut Gradients) -> Result<()> {
        let nodes = self.nodes.map(RefCell::into_inner).unwrap_or_default();
        gradients.values.resize_with(nodes.len(), || None);
        gradients.give(from, grad);
        for (index, node) in nodes.into_iter().enumerate().rev() {
            let Some(backward) = node else { continue };
            if let Some(grad) = gradients.values[index].take() {
                backward(grad, gradients)?;
            }
        }
        Ok(())
    }
}

/// Gradients of activations and of weights during the backward.
#[derive(Default)]
pub struct Gradients {
    values: Vec<Option<Vec<f32>>>,
    weights: HashMap<TensorId, Vec<f32>>,
}

impl Gradients {
    /// Gradient of a trained weight, row-major; `None` if the weight was not used.
    pub fn weight(&mut self, weight: &Tensor) -> Option<Vec<f32>> {
        self.weights.remove(&weight.id())
    }

    /// Gradient of a leaf.
    pub fn leaf(&mut self, leaf: &Value) -> Option<Vec<f32>> {
        self.values.get_mut(leaf.node?)?.take()
    }

    /// Adds a gradient of the activation with that node.
    fn give(&mut self, node: Option<usize>, grad: Vec<f32>) {
        let Some(node) = node else { return };
        match &mut self.values[node] {
            Some(sum) => rows::add(sum, &grad),
            empty => *empty = Some(grad),
        }
    }

    /// Lets `f` add to the gradient (`len` values) of the activation with that node; the second
    /// argument is false while the gradient is all zeros.
    fn add<R>(
        &mut self,
        node: Option<usize>,
        len: usize,
        f: impl FnOnce(&mut [f32], bool) -> R,
    ) -> Option<R> {
        let slot = &mut self.values[node?];
        let filled = slot.is_some();
        Some(f(slot.get_or_insert_with(|| vec![0.0; len]), filled))
    }

    /// The same for a weight.
    fn add_weight(&mut self, weight: &Tensor, f: impl FnOnce(&mut [f32], bool)) {
        let filled = self.weights.contains_key(&weight.id());
        let zeros = || vec![0.0; weight.elem_count()];
        f(self.weights.entry(weight.id()).or_insert_with(zeros), filled);
    }
}
