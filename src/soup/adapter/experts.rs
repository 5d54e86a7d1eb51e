//! Low-rank changes of experts as PEFT saves them for transformers 5, where the experts of a layer are
//! two parameters: `gate_up_proj` `[experts, 2 · width, hidden]` and `down_proj` `[experts, hidden, width]`.
//!
//! The factors of a parameter stand in one pair, A `[experts · r, in]` by expert, then rank, and B
//! `[out, r · experts]` by rank, then expert. The pair of one parameter is called `experts`, that of a
//! second one `experts.base_layer`: their shapes tell which is which.

use crate::{
    kernels::HostTensor,
    model::{
        config::{Experts, ModelConfig},
        names::Module,
    },
    soup::peft::LoraConfig,
};

/// The two factors of one parameter of all experts of a layer.
pub struct Stacked {
    /// A, `[experts · r, in]`.
    pub down: HostTensor,
    /// B, `[out, r · experts]`.
    pub up: HostTensor,
}

/// The change of one linear layer of one expert.
pub struct Part {
    /// Its path in a checkpoint.
    pub path: String,
    /// A, `[r, in]`.
    pub down: HostTensor,
    /// B, `[out, r]`.
    pub up: HostTensor,
    /// Factor of B·A.
    pub scale: f64,
}

/// Whether a module of an adapter is the experts of a layer.
pub fn is_stacked(module: &str) -> bool {
    module.ends_with(".experts") || module.ends_with(".experts.base_layer")
}

/// The parameter of all experts of a layer, as transformers 5 has it, that holds an expert's `weight`.
pub fn parameter_of(weight: &str) -> Option<String> {
    let (experts, expert) = weight.split_once(".experts.")?;
    let down = ["down_proj.weight", "w2.weight"].iter().any(|down| expert.ends_with(down));
    Some(format!("{experts}.experts.{}", if down { DOWN } else { GATE_UP }))
}

const GATE_UP: &str = "gate_up_proj";
const DOWN: &str = "down_proj";

impl Stacked {
    /// The parts of each expert, and the name of the parameter that they change; the reason, where they
    /// fit none.
    pub fn split(
        &self,
        module: &str,
        (model, settings): (&ModelConfig, &LoraConfig),
    ) -> Result<(String, Vec<Part>), String> {
        let (layer, experts) = place(module, model).ok_or("the experts of a layer of the base")?;
        let &Experts { count, width, names, .. } = experts;
        let (hidden, shapes) = (model.hidden_size, (self.down.shape(), self.up.shape()));
        let parts: &[Module] = match shapes {
            ([_, inputs], [outputs, _]) if (*inputs, *outputs) == (hidden, 2 * width) => {
                &[Module::Gate, Module::Up]
            }
            ([_, inputs], [outputs, _]) if (*inputs, *outputs) == (width, hidden) => {
                &[Module::Down]
            }
            _ => {
                let expected = "A [experts · r, in] and B [out, r · experts] with (in, out) one of";
                return Err(format!("{expected} ({hidden}, {}), ({width}, {hidden})", 2 * width));
            }
        };
        let name = if parts.len() == 2 { GATE_UP } else { DOWN };
        let name = format!("model.layers.{layer}.mlp.experts.{name}");
        let (rank, scale) = settings.rank_and_scale(&name);
        let (inputs, outputs) = (self.down.shape()[1], self.up.shape()[0]);
        if self.down.shape()[0] != count * rank || self.up.shape()[1] != count * rank {
            let total = count * rank;
            return Err(format!(
                "A [{total}, {inputs}] and B [{outputs}, {total}], rank {rank} being the settings'"
            ));
        }
        let (down, up) = (self.down.to_f32(), self.up.to_f32());
        let tensor = |values: &[f32], shape, like: &HostTensor| {
            HostTensor::rounded(values, like.dtype(), shape).map_err(|error| error.to_string())
        };
        let mut modules = Vec::with_capacity(count * parts.len());
        for expert in 0..count {
            let rows = expert * rank * inputs..(expert + 1) * rank * inputs;
            let factor = tensor(&down[rows], vec![rank, inputs], &self.down)?;
            let columns: Vec<f32> = up.iter().skip(expert).step_by(count).copied().collect();
            let part = outputs / parts.len();
            for (columns, &module) in columns.chunks_exact(part * rank).zip(parts) {
                let up = tensor(columns, vec![part, rank], &self.up)?;
                let path = names.path(layer, expert, module);
                modules.push(Part { path, down: factor.clone(), up, scale });
            }
        }
        Ok((name, modules))
    }
}

/// The layer whose experts a module is, and their settings.
fn place<'a>(module: &str, model: &'a ModelConfig) -> Option<(usize, &'a Experts)> {
    let path = module.strip_suffix(".base_layer").unwrap_or(module);
    let layer = path.strip_prefix("model.layers.")?.split_once('.')?.0.parse().ok()?;
    let experts = model.experts(layer)?;
    (path == format!("model.layers.{layer}.mlp.experts")).then_some((layer, experts))
}
