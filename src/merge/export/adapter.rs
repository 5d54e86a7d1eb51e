//! `ladle merge --adapter`: ΔW = Σ cᵢsᵢBᵢAᵢ as one product of stacked factors, each A carrying its
//! cᵢsᵢ (sign included), so that LoRA's own scale is 1.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroUsize,
    path::Path,
};

use serde_json::{Value, json};

use super::{
    ExportError,
    truncate::{Truncation, truncate},
};
use crate::{
    files::{Staging, write_json},
    kernels::{Dtype, HostTensor},
    merge::{
        MergeError,
        dense::{merge_tensor, rounded},
        low_rank::{LowRankTerm, stack, total_rank},
        plan::{SoupPlan, TensorPlan},
    },
    model::names::module_of,
    preference::{Coefficients, key::ModelKey},
    soup::{
        ActiveFrom, BackboneKind, LoraModule, Soup, TensorSpec,
        adapter::{CONFIG, PREFIX, WEIGHTS},
        weights::{same_values, write_safetensors},
    },
};

/// Writes θ̂ − base of `c` as one PEFT adapter that is whole or absent: all of it in `dtype`, or each
/// tensor in the storage type that its sources share (f32 where they differ). Coefficients are the
/// served ones ([`ModelKey`]); terms whose coefficient is 0 are left out. Every module gets the same
/// rank, zeros filling up, because not every loader reads rank patterns. What differs from the base
/// in more than low-rank terms is merged and stored whole.
///
/// Where the backbones are active on the answer only, so is the adapter: from the tokens that the
/// backbones name, else from `generation_prompt`, the tokens that the chat template appends to open
/// an answer.
///
/// With `rank`, what has a higher one is replaced by the nearest change of that rank, and the result
/// says what that leaves out.
pub fn export_adapter(
    soup: &Soup,
    c: &Coefficients,
    (dtype, rank): (Option<Dtype>, Option<NonZeroUsize>),
    generation_prompt: Option<&[u32]>,
    out: &Path,
) -> Result<Option<Truncation>, ExportError> {
    let full = soup.manifest.backbones.iter().find(|b| b.kind == BackboneKind::Full);
    if let Some(backbone) = full {
        return Err(ExportError::NotLowRank { backbone: backbone.name.clone() });
    }
    let invocation = invocation(soup, generation_prompt)?;
    let plan = SoupPlan::new(soup, &soup.config).map_err(MergeError::from)?;
    let c = ModelKey::of(c).coefficients();
    let values = plan.term_values(&c).map_err(MergeError::from)?;
    let mut changes = Changes::of(soup, &plan, &values, dtype)?;
    if let (Some(_), Some(tensor)) = (invocation, changes.first_whole()) {
        return Err(ExportError::WholeTensor { tensor: tensor.clone() });
    }
    let truncation = rank.map(|rank| truncate(&mut changes.low_rank, rank.get())).transpose()?;
    let (rank, tensors) = changes.tensors(&plan, &values, dtype)?;

    let staging = Staging::new(out)?;
    let specs: Vec<_> = tensors.iter().map(|(name, tensor)| TensorSpec::of(name, tensor)).collect();
    write_safetensors(&staging.path().join(WEIGHTS), &specs, |spec| {
        let missing = || MergeError::Missing { tensor: spec.name.clone() };
        Ok::<_, ExportError>(tensors.get(&spec.name).cloned().ok_or_else(missing)?)
    })?;
    write_json(&staging.path().join(CONFIG), &changes.config(soup, rank, invocation))?;
    staging.commit()?;
    Ok(truncation)
}

/// The tokens from which the adapter is active; none: on every row.
fn invocation<'a>(
    soup: &'a Soup,
    generation_prompt: Option<&'a [u32]>,
) -> Result<Option<&'a [u32]>, ExportError> {
    if soup.active_from.is_answer() && soup.sft.is_some() {
        return Err(ExportError::SftPrompt);
    }
    match &soup.active_from {
        ActiveFrom::Start => Ok(None),
        ActiveFrom::Tokens(tokens) => Ok(Some(tokens)),
        ActiveFrom::GenerationPrompt => match generation_prompt {
            Some(tokens) if !tokens.is_empty() => Ok(Some(tokens)),
            _ => Err(ExportError::NoInvocation),
        },
    }
}

/// How the merged model differs from the base.
struct Changes {
    /// Low-rank terms by module, with the coefficients and scales in A.
    low_rank: BTreeMap<String, Vec<LowRankTerm>>,
    /// Modules whose tensors are all stored whole.
    whole: BTreeSet<String>,
    /// Biases that are stored whole, of other modules.
    biases: BTreeSet<String>,
}

impl Changes {
    fn of(
        soup: &Soup,
        plan: &SoupPlan,
        values: &[f32],
        dtype: Option<Dtype>,
    ) -> Result<Self, MergeError> {
        let mut changes =
            Self { low_rank: BTreeMap::new(), whole: BTreeSet::new(), biases: BTreeSet::new() };
        for tensor in plan.tensors() {
            let module = module_of(&tensor.name).to_owned();
            let base = soup.base.get(&tensor.name);
            let is_base = |t: &HostTensor| base.as_ref().is_some_and(|base| same_values(base, t));
            let mut dense = tensor.dense.iter();
            if dense.any(|dense| value(dense.term, values) != 0.0 && !is_base(&dense.tensor)) {
                match tensor.name.ends_with(".bias") {
                    true => changes.biases.insert(tensor.name.clone()),
                    false => changes.whole.insert(module),
                };
                continue;
            }
            let terms = scaled_terms(tensor, values, dtype)?;
            if !terms.is_empty() {
                changes.low_rank.insert(module, terms);
            }
        }
        let whole = &changes.whole;
        changes.biases.retain(|bias| !whole.contains(module_of(bias)));
        Ok(changes)
    }

    /// A module or tensor that is stored whole.
    fn first_whole(&self) -> Option<&String> {
        self.whole.iter().chain(&self.biases).next()
    }

    /// The rank of all modules, and the tensors by the names that PEFT gives them.
    fn tensors(
        &self,
        plan: &SoupPlan,
        values: &[f32],
        dtype: Option<Dtype>,
    ) -> Result<(usize, BTreeMap<String, HostTensor>), MergeError> {
        let ranks = self.low_rank.values().map(|terms| total_rank(terms));
        let rank = ranks.max().unwrap_or(0).max(1);
        let mut out = BTreeMap::new();
        for tensor in plan.tensors() {
            let (name, module) = (&tensor.name, module_of(&tensor.name));
            let whole = self.whole.contains(module);
            if whole || self.biases.contains(name) {
                let dtype = dtype.unwrap_or_else(|| {
                    common(tensor.dense.iter().map(|dense| dense.tensor.dtype()))
                });
                let name = match self.low_rank.contains_key(module) {
                    true => format!("{PREFIX}{module}.base_layer.bias"),
                    false => format!("{PREFIX}{name}"),
                };
                out.insert(name, merge_tensor(tensor, values, dtype)?);
            } else if let Some(terms) = self.low_rank.get(module)
                && !name.ends_with(".bias")
            {
                let refuse = |source| MergeError::Tensor { tensor: name.clone(), source };
                let stacked = stack(terms, rank).map_err(refuse)?;
                out.insert(format!("{PREFIX}{module}.lora_A.weight"), stacked.down);
                out.insert(format!("{PREFIX}{module}.lora_B.weight"), stacked.up);
            }
        }
        Ok((rank, out))
    }

    fn config(&self, soup: &Soup, rank: usize, invocation: Option<&[u32]>) -> Value {
        let base = &soup.manifest.base;
        let name = match (&base.id, &base.path, &base.gguf) {
            (Some(id), _, _) => id.clone(),
            _ => soup.base_dir.display().to_string(),
        };
        let ties = soup.config.tied && self.whole.contains(module_of(soup.config.embedding()));
        let mut config = json!({
            "peft_type": "LORA",
            "task_type": match soup.config.encoder {
                None => "CAUSAL_LM",
                Some(_) => "SEQ_2_SEQ_LM",
            },
            "base_model_name_or_path": name,
            "revision": base.revision,
            "inference_mode": true,
            "r": rank,
            "lora_alpha": rank,
            "use_rslora": false,
            "use_dora": false,
            "lora_dropout": 0.0,
            "bias": if self.biases.is_empty() { "none" } else { "all" },
            "fan_in_fan_out": false,
            "init_lora_weights": true,
            "target_modules": self.targets(soup),
            "modules_to_save": (!self.whole.is_empty()).then_some(&self.whole),
            "ensure_weight_tying": ties,
            "rank_pattern": {},
            "alpha_pattern": {},
        });
        // Loaders that do not know aLoRA need not read its key.
        if let Some(tokens) = invocation {
            config["alora_invocation_tokens"] = json!(tokens);
        }
        config
    }

    /// Adapted modules by their last names (`q_proj`) wherever those name no module beyond them.
    fn targets(&self, soup: &Soup) -> BTreeSet<String> {
        let last = |module: &str| module.rsplit('.').next().unwrap_or(module).to_owned();
        let all = || soup.base.names().filter_map(|name| name.strip_suffix(".weight"));
        let shared = |module: &String| {
            let name = last(module);
            all().filter(|other| last(other) == name).all(|o| self.low_rank.contains_key(o))
        };
        let modules = self.low_rank.keys();
        modules.map(|module| if shared(module) { last(module) } else { module.clone() }).collect()
    }
}

fn value(term: Option<usize>, values: &[f32]) -> f64 {
    term.and_then(|index| values.get(index)).map_or(1.0, |&value| f64::from(value))
}

/// The terms of a tensor that are not 0, with coefficient and scale in A, in one storage type.
fn scaled_terms(
    tensor: &TensorPlan,
    values: &[f32],
    dtype: Option<Dtype>,
) -> Result<Vec<LowRankTerm>, MergeError> {
    let used: Vec<(&LowRankTerm, f64)> = tensor
        .low_rank
        .iter()
        .map(|term| (term, value(term.term, values) * term.lora.scale))
        .filter(|&(_, factor)| factor != 0.0)
        .collect();
    let factors = used.iter().flat_map(|(term, _)| [&term.lora.down, &term.lora.up]);
    let dtype = dtype.unwrap_or_else(|| common(factors.map(HostTensor::dtype)));
    let terms = used.iter().map(|(term, factor)| {
        let down = rounded(&tensor.name, &term.lora.down, *factor, dtype)?;
        let up = rounded(&tensor.name, &term.lora.up, 1.0, dtype)?;
        Ok(LowRankTerm { lora: LoraModule { down, up, scale: 1.0 }, term: None })
    });
    terms.collect()
}

/// The storage type that all share, else f32.
fn common(mut dtypes: impl Iterator<Item = Dtype>) -> Dtype {
    let first = dtypes.next().unwrap_or(Dtype::F32);
    if first.blocks().is_none() && dtypes.all(|dtype| dtype == first) { first } else { Dtype::F32 }
}
