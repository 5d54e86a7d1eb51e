//! The plan of a merge: every tensor of the merged model as a sum of dense and low-rank terms
//! (`docs/algorithms.md` §2.1).
//!
//! With θᵢ = θ_sft + sᵢBᵢAᵢ for an adapter and θᵢ as stored for a full checkpoint, the merged model
//! Σᵢ cᵢθᵢ + c_sft·θ_sft is, tensor by tensor, a sum of dense and low-rank terms whose coefficients
//! are linear in c:
//!
//! | term | coefficient |
//! |---|---|
//! | the base's tensor | c_sft + Σ cᵢ over the adapters (1 when all backbones are adapters) |
//! | the SFT adapter's BA | the same |
//! | adapter i's BA | cᵢ |
//! | backbone i's full tensor, or its `modules_to_save` copy | cᵢ; such a copy takes adapter i out of the base's coefficient |
//!
//! Tensors are referred to; their values are read only to find copies of one another.

use std::collections::{BTreeMap, BTreeSet};

use super::low_rank::LowRankTerm;
use crate::{
    kernels::{Dtype, HostTensor},
    model::{config::ModelConfig, names::is_table},
    preference::Coefficients,
    soup::{Adapter, Backbone, LoraModule, Soup},
};

/// Tensors by their Hugging Face names.
pub type Tensors = BTreeMap<String, HostTensor>;

/// The weights of a soup, as the plan needs them.
pub struct Ingredients<'a> {
    /// The base model.
    pub base: &'a Tensors,
    /// Its SFT adapter: θ_sft = base + that.
    pub sft: Option<Change<'a>>,
    /// The backbones, in the order of the coefficients.
    pub backbones: Vec<Ingredient<'a>>,
    /// Whether they are active on the answer only.
    pub answer_only: bool,
}

/// One backbone.
pub enum Ingredient<'a> {
    /// A change to θ_sft.
    Adapter(Change<'a>),
    /// A whole checkpoint.
    Full(&'a Tensors),
}

/// The tensors that an adapter changes.
#[derive(Clone, Copy)]
pub struct Change<'a> {
    /// Low-rank changes by module path.
    pub modules: &'a BTreeMap<String, LoraModule>,
    /// Replaced tensors by name.
    pub saved: &'a Tensors,
}

impl<'a> From<&'a Adapter> for Change<'a> {
    fn from(adapter: &'a Adapter) -> Self {
        Self { modules: &adapter.modules, saved: &adapter.saved }
    }
}

impl<'a> From<&'a Soup> for Ingredients<'a> {
    fn from(soup: &'a Soup) -> Self {
        let ingredient = |backbone: &'a Backbone| match backbone {
            Backbone::Adapter(adapter) => Ingredient::Adapter(adapter.into()),
            Backbone::Full(checkpoint) => Ingredient::Full(checkpoint.tensors()),
        };
        Self {
            base: soup.base.tensors(),
            sft: soup.sft.as_ref().map(Change::from),
            backbones: soup.backbones.iter().map(ingredient).collect(),
            answer_only: soup.active_from.is_answer(),
        }
    }
}

/// Weights that do not make one model, or coefficients that do not fit the soup.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// A tensor that the model needs is absent.
    #[error("{owner}: no tensor {tensor}, expected one of shape {expected:?}")]
    Missing {
        owner: String,
        tensor: String,
        /// Shape by the base's configuration.
        expected: Vec<usize>,
    },
    /// A tensor has another shape than the model needs.
    #[error("{owner}: {tensor} has shape {got:?}, expected {expected:?}")]
    Shape {
        owner: String,
        /// Name of the tensor or factor.
        tensor: String,
        /// Shape by the base's configuration.
        expected: Vec<usize>,
        got: Vec<usize>,
    },
    /// A tensor that is not part of the model.
    #[error("{owner}: {tensor} is no tensor of the model")]
    LeftOver {
        owner: String,
        /// Name of the tensor or module.
        tensor: String,
    },
    /// A low-rank change of something that is not a linear layer.
    #[error("{owner}: low-rank change of {tensor}, expected a linear layer")]
    NotLinear { owner: String, tensor: String },
    /// Coefficients of another number of backbones.
    #[error("{got} coefficients, expected {expected} (one per backbone)")]
    Length {
        /// Backbones of the soup.
        expected: usize,
        /// Coefficients given.
        got: usize,
    },
    /// A coefficient that is not finite.
    #[error("coefficient {index} is {value}, expected a finite number")]
    NotFinite {
        /// Its index; the number of backbones for θ_sft's.
        index: usize,
        value: f64,
    },
}

/// A full-rank term of a tensor.
#[derive(Debug, Clone)]
pub struct DenseTerm {
    /// The weights, of the tensor's shape.
    pub tensor: HostTensor,
    /// Index of its coefficient; `None` is 1 whatever c is.
    pub term: Option<usize>,
}

/// One tensor of the merged model as a sum.
#[derive(Debug, Clone)]
pub struct TensorPlan {
    /// Hugging Face name.
    pub name: String,
    /// Storage type of the base's tensor.
    pub dtype: Dtype,
    /// Full-rank terms, at least one; the first is θ_sft's.
    pub dense: Vec<DenseTerm>,
    /// Low-rank terms; only linear layers have them.
    pub low_rank: Vec<LowRankTerm>,
}

impl TensorPlan {
    pub fn shape(&self) -> &[usize] {
        self.dense[0].tensor.shape()
    }
}

/// The plan of a soup: its tensors as sums, and the functionals of c that are the coefficients of
/// their terms.
#[derive(Debug, Clone)]
pub struct SoupPlan {
    tensors: Vec<TensorPlan>,
    terms: Vec<Vec<f64>>,
    backbones: usize,
    answer_only: bool,
}

impl SoupPlan {
    /// Plans the soup's model: every tensor of `config`, and nothing left over.
    pub fn new<'a>(
        soup: impl Into<Ingredients<'a>>,
        config: &ModelConfig,
    ) -> Result<Self, PlanError> {
        let soup = soup.into();
        let shapes: BTreeMap<String, Vec<usize>> = config.tensors().into_iter().collect();
        check_left_over(&soup, &shapes)?;
        let mut plan = Self {
            tensors: Vec::new(),
            terms: Vec::new(),
            backbones: soup.backbones.len(),
            answer_only: soup.answer_only,
        };
        for (name, shape) in config.tensors() {
            let tensor = plan.tensor(&soup, name, &shape)?;
            plan.tensors.push(tensor);
        }
        Ok(plan)
    }

    fn tensor(
        &mut self,
        soup: &Ingredients<'_>,
        name: String,
        shape: &[usize],
    ) -> Result<TensorPlan, PlanError> {
        let n = self.backbones;
        let unit = |i: usize| (0..=n).map(|j| if i == j { 1.0 } else { 0.0 }).collect::<Vec<_>>();
        let module = name.strip_suffix(".weight").unwrap_or_default();
        let mut root = find(soup.base, "base", &name, shape)?;
        let dtype = root.dtype();
        let mut root_term = unit(n);
        let mut dense = Vec::new();
        let mut low_rank = Vec::new();
        for (i, backbone) in soup.backbones.iter().enumerate() {
            let owner = format!("backbone {i}");
            match backbone {
                Ingredient::Full(tensors) => {
                    dense.push((find(tensors, &owner, &name, shape)?, unit(i)));
                }
                Ingredient::Adapter(change) => {
                    if change.saved.contains_key(&name) {
                        dense.push((find(change.saved, &owner, &name, shape)?, unit(i)));
                    } else {
                        root_term[i] = 1.0;
                    }
                    if let Some(lora) = change.modules.get(module) {
                        low_rank.push((check_factors(lora, owner, &name, shape)?, unit(i)));
                    }
                }
            }
        }
        if let Some(change) = &soup.sft {
            let owner = "sft adapter".to_owned();
            if change.saved.contains_key(&name) {
                root = find(change.saved, &owner, &name, shape)?;
            }
            if let Some(lora) = change.modules.get(module) {
                let lora = check_factors(lora, owner, &name, shape)?;
                low_rank.insert(0, (lora, root_term.clone()));
            }
        }
        dense.insert(0, (root, root_term));
        let dense = join_copies(dense)
            .into_iter()
            .map(|(tensor, term)| DenseTerm { tensor: tensor.clone(), term: self.term(term) })
            .collect();
        let low_rank = low_rank
            .into_iter()
            .map(|(lora, term)| LowRankTerm { lora: lora.clone(), term: self.term(term) })
            .collect();
        Ok(TensorPlan { name, dtype, dense, low_rank })
    }

    /// The index of a functional; none for Σc, which is 1.
    fn term(&mut self, functional: Vec<f64>) -> Option<usize> {
        if functional.iter().all(|&weight| weight == 1.0) {
            return None;
        }
        Some(self.terms.iter().position(|known| *known == functional).unwrap_or_else(|| {
            self.terms.push(functional);
            self.terms.len() - 1
        }))
    }

    /// The tensors, in the order of [`ModelConfig::tensors`].
    pub fn tensors(&self) -> &[TensorPlan] {
        &self.tensors
    }

    /// The distinct coefficients as functionals over (c₁..cₙ, c_sft).
    pub fn terms(&self) -> &[Vec<f64>] {
        &self.terms
    }

    /// Whether a full-rank matrix of any model is in f32 or f16.
    pub fn wide(&self) -> bool {
        let dense = self.tensors.iter().flat_map(|tensor| &tensor.dense);
        let mut matrices = dense.filter(|term| term.tensor.shape().len() == 2);
        matrices.any(|term| matches!(term.tensor.dtype(), Dtype::F32 | Dtype::F16))
    }

    /// The first tensor with a quantised term, with its storage type.
    pub fn quantised(&self) -> Option<(&str, Dtype)> {
        self.tensors.iter().find_map(|tensor| {
            let mut dtypes = tensor.dense.iter().map(|term| term.tensor.dtype());
            Some((tensor.name.as_str(), dtypes.find(|dtype| dtype.blocks().is_some())?))
        })
    }

    /// Number of backbones n.
    pub fn backbones(&self) -> usize {
        self.backbones
    }

    /// Whether c acts on the answer only, and θ_sft on the prompt.
    pub fn answer_only(&self) -> bool {
        self.answer_only
    }

    /// The value of every term at c.
    pub fn term_values(&self, c: &Coefficients) -> Result<Vec<f32>, PlanError> {
        if c.backbones.len() != self.backbones {
            return Err(PlanError::Length { expected: self.backbones, got: c.backbones.len() });
        }
        let values: Vec<f64> = c.backbones.iter().chain([&c.sft]).copied().collect();
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return Err(PlanError::NotFinite { index, value: values[index] });
        }
        let at = |term: &Vec<f64>| term.iter().zip(&values).map(|(w, c)| w * c).sum::<f64>() as f32;
        Ok(self.terms.iter().map(at).collect())
    }
}

fn find<'a>(
    tensors: &'a Tensors,
    owner: &str,
    name: &str,
    shape: &[usize],
) -> Result<&'a HostTensor, PlanError> {
    let (owner, tensor) = (owner.to_owned(), name.to_owned());
    match tensors.get(name) {
        None => Err(PlanError::Missing { owner, tensor, expected: shape.to_vec() }),
        Some(found) if found.shape() != shape => Err(PlanError::Shape {
            owner,
            tensor,
            expected: shape.to_vec(),
            got: found.shape().to_vec(),
        }),
        Some(found) => Ok(found),
    }
}

fn check_factors<'a>(
    lora: &'a LoraModule,
    owner: String,
    name: &str,
    shape: &[usize],
) -> Result<&'a LoraModule, PlanError> {
    let &[out, width] = shape else {
        return Err(PlanError::NotLinear { owner, tensor: name.to_owned() });
    };
    if is_table(name) {
        return Err(PlanError::NotLinear { owner, tensor: name.to_owned() });
    }
    let rank = lora.rank();
    for (factor, tensor, expected) in
        [("A", &lora.down, [rank, width]), ("B", &lora.up, [out, rank])]
    {
        if tensor.shape() != expected {
            return Err(PlanError::Shape {
                owner,
                tensor: format!("{factor} of {name}"),
                expected: expected.to_vec(),
                got: tensor.shape().to_vec(),
            });
        }
    }
    Ok(lora)
}

/// Terms with the same bits become one, with the sum of their coefficients: what a backbone did
/// not train is read once.
fn join_copies(terms: Vec<(&HostTensor, Vec<f64>)>) -> Vec<(&HostTensor, Vec<f64>)> {
    let mut joined: Vec<(&HostTensor, Vec<f64>)> = Vec::new();
    for (tensor, term) in terms {
        let same =
            |known: &HostTensor| known.dtype() == tensor.dtype() && known.bytes() == tensor.bytes();
        match joined.iter_mut().find(|(known, _)| same(known)) {
            Some((_, sum)) => sum.iter_mut().zip(&term).for_each(|(sum, weight)| *sum += weight),
            None => joined.push((tensor, term)),
        }
    }
    joined
}

fn check_left_over(
    soup: &Ingredients<'_>,
    shapes: &BTreeMap<String, Vec<usize>>,
) -> Result<(), PlanError> {
    let known = |name: &str| shapes.contains_key(name);
    let modules: BTreeSet<&str> =
        shapes.keys().filter_map(|name| name.strip_suffix(".weight")).collect();
    let refuse =
        |owner: String, tensor: &str| Err(PlanError::LeftOver { owner, tensor: tensor.to_owned() });
    let whole = |owner: String, tensors: &Tensors| match tensors.keys().find(|name| !known(name)) {
        Some(name) => refuse(owner, name),
        None => Ok(()),
    };
    let change = |owner: String, change: &Change<'_>| {
        let saved = change.saved.keys().find(|name| !shapes.contains_key(*name));
        let module = change.modules.keys().find(|module| !modules.contains(module.as_str()));
        match saved.or(module) {
            Some(name) => refuse(owner, name),
            None => Ok(()),
        }
    };
    whole("base".to_owned(), soup.base)?;
    if let Some(sft) = &soup.sft {
        change("sft adapter".to_owned(), sft)?;
    }
    for (i, backbone) in soup.backbones.iter().enumerate() {
        let owner = format!("backbone {i}");
        match backbone {
            Ingredient::Full(tensors) => whole(owner, tensors)?,
            Ingredient::Adapter(adapter) => change(owner, adapter)?,
        }
    }
    Ok(())
}
