//! Every key that PEFT writes into `adapter_config.json`, and what is done with it. The table in
//! `docs/soup-format.md` is [`page`].

use serde_json::Value;

/// A key of `adapter_config.json`.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    pub name: &'static str,
    /// Which values are accepted.
    pub rule: Rule,
    /// What an accepted value does, or why the others are refused.
    pub meaning: &'static str,
}

/// Which values of a key are accepted.
#[derive(Debug, Clone, Copy)]
pub enum Rule {
    /// Every value that can be parsed; it decides the function.
    Served,
    /// All: the key plays no part in what the trained adapter computes.
    Ignored,
    /// These JSON texts, and an absent or null key.
    Only(&'static [&'static str]),
    /// Only an absent key, null, false, `[]` and `{}`.
    Unset,
}

impl Rule {
    /// Whether the key may have `value`. Values of served keys are checked where they are parsed.
    pub fn accepts(self, value: &Value) -> bool {
        match self {
            Self::Served | Self::Ignored => true,
            Self::Only(texts) => value.is_null() || texts.contains(&value.to_string().as_str()),
            Self::Unset => match value {
                Value::Null | Value::Bool(false) => true,
                Value::Array(list) => list.is_empty(),
                Value::Object(map) => map.is_empty(),
                _ => false,
            },
        }
    }

    /// The accepted values, for error messages.
    pub fn expected(self) -> String {
        match self {
            Self::Served | Self::Ignored => "any value".to_owned(),
            Self::Only(texts) => texts.join(", "),
            Self::Unset => "it unset".to_owned(),
        }
    }
}

const fn key(name: &'static str, rule: Rule, meaning: &'static str) -> Key {
    Key { name, rule, meaning }
}

/// The keys of PEFT 0.21, in alphabetical order.
pub const KEYS: [Key; 41] = [
    key(
        "alora_invocation_tokens",
        Rule::Served,
        "aLoRA: active from the last occurrence of these tokens, in a soup with \
         `activation = \"answer\"` whose backbones all name them; refused beside tensors stored whole",
    ),
    key("alpha_pattern", Rule::Served, "alpha by module: the first pattern that matches wins"),
    key("arrow_config", Rule::Unset, "Arrow routes between adapters token by token"),
    key("auto_mapping", Rule::Ignored, "names the class of the base"),
    key("base_model_name_or_path", Rule::Ignored, "the soup names its base"),
    key(
        "bias",
        Rule::Only(&["\"none\"", "\"all\"", "\"lora_only\""]),
        "trained biases are in the weights; they replace the base's",
    ),
    key("corda_config", Rule::Ignored, "of the initialisation, which `init_lora_weights` decides"),
    key(
        "ensure_weight_tying",
        Rule::Served,
        "a saved embedding is the output head too, where the base's are tied",
    ),
    key("eva_config", Rule::Ignored, "of the initialisation, which `init_lora_weights` decides"),
    key("exclude_modules", Rule::Served, "list of suffixes, or one pattern for the whole path"),
    key("fan_in_fan_out", Rule::Ignored, "PEFT itself takes it for false on linear layers"),
    key("inference_mode", Rule::Ignored, "no part in the function"),
    key(
        "init_lora_weights",
        Rule::Only(&["true", "false", "\"gaussian\"", "\"eva\"", "\"orthogonal\"", "\"mica\""]),
        "the others (`pissa`, `olora`, `corda`, `loftq`, `lora_ga` …) change the base as well: \
         convert with `save_pretrained(…, path_initial_model_for_weight_conversion=…)`",
    ),
    key("kasa_config", Rule::Unset, "KaSA changes the base and has a third factor"),
    key("layer_replication", Rule::Unset, "another stack of layers"),
    key("layers_pattern", Rule::Served, "name of the list of layers, beside `layers_to_transform`"),
    key(
        "layers_to_transform",
        Rule::Served,
        "layers that a list of targets is limited to; refused beside a pattern, as in PEFT",
    ),
    key("loftq_config", Rule::Ignored, "of the initialisation, which `init_lora_weights` decides"),
    key("lora_alpha", Rule::Served, "s = alpha / r, with `use_rslora` alpha / √r"),
    key("lora_bias", Rule::Unset, "a bias on B"),
    key("lora_dropout", Rule::Ignored, "of training"),
    key(
        "lora_ga_config",
        Rule::Ignored,
        "of the initialisation, which `init_lora_weights` decides",
    ),
    key("megatron_config", Rule::Unset, "layers of Megatron"),
    key("megatron_core", Rule::Ignored, "name of a Python module"),
    key(
        "modules_to_save",
        Rule::Served,
        "whole tensors; a name matches the end of a module's path, or of one that contains it",
    ),
    key("monteclora_config", Rule::Unset, "MonteCLoRA samples its weights"),
    key("peft_type", Rule::Only(&["\"LORA\""]), "other kinds of adapters are not served"),
    key("peft_version", Rule::Ignored, "no part in the function"),
    key("qalora_group_size", Rule::Ignored, "of `use_qalora`"),
    key("r", Rule::Served, "rank"),
    key("rank_pattern", Rule::Served, "rank by module: the first pattern that matches wins"),
    key("revision", Rule::Ignored, "the soup names its base"),
    key(
        "target_modules",
        Rule::Served,
        "list of suffixes, one pattern for the whole path, or `all-linear` (the head excluded)",
    ),
    key(
        "target_parameters",
        Rule::Served,
        "list of ends of parameter names: weights of linear layers and, as transformers 5 has them, \
         `experts.gate_up_proj`, `experts.down_proj` and routers (`gate.weight`)",
    ),
    key("task_type", Rule::Ignored, "the tensors tell"),
    key("trainable_token_indices", Rule::Unset, "rows of the embedding"),
    key("use_bdlora", Rule::Unset, "BD-LoRA has block-diagonal factors"),
    key("use_dora", Rule::Unset, "DoRA normalises the changed weight: no low-rank change"),
    key("use_qalora", Rule::Unset, "QALoRA pools the input"),
    key("use_rslora", Rule::Served, "see `lora_alpha`"),
    key("velora_config", Rule::Unset, "VeLoRA"),
];

/// The table of the documentation, in Markdown.
pub fn page() -> String {
    let mut page = "| key | accepted | |\n|---|---|---|\n".to_owned();
    for Key { name, rule, meaning } in KEYS {
        let accepted = match rule {
            Rule::Served => "**served**".to_owned(),
            Rule::Ignored => "any, ignored".to_owned(),
            Rule::Only(texts) => format!("`{}`", texts.join("`, `")),
            Rule::Unset => "unset, else refused".to_owned(),
        };
        page.push_str(&format!("| `{name}` | {accepted} | {meaning} |\n"));
    }
    page
}
