//! `adapter_config.json` as PEFT writes it: which modules are adapted, with which rank and scale.
//! [`KEYS`] says for every key whether it is served, ignored or refused.

mod keys;

use std::path::Path;

use regex::Regex;
use serde_json::{Map, Value};

pub use keys::{KEYS, Key, Rule, page};

use super::error::WeightError;
use crate::{
    files::read_json,
    model::names::{HEAD, is_table, module_of},
};

/// The settings of a LoRA adapter that decide its function.
#[derive(Debug, Clone)]
pub struct LoraConfig {
    rank: usize,
    alpha: f64,
    rslora: bool,
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f64)>,
    targets: Targets,
    excluded: Option<Targets>,
    layers: Option<Layers>,
    /// Ends of the names of parameters that are adapted by themselves.
    parameters: Vec<String>,
    /// Modules stored whole instead of as low-rank factors.
    pub saved: Vec<String>,
    /// The adapter keeps tied embeddings tied.
    pub ties_weights: bool,
    /// aLoRA: the tokens from whose last occurrence in the prompt the adapter is active.
    pub invocation: Option<Vec<u32>>,
}

#[derive(Debug, Clone)]
enum Targets {
    AllLinear,
    Names(Vec<String>),
    Pattern(Regex),
}

#[derive(Debug, Clone)]
struct Layers {
    indexes: Vec<u64>,
    patterns: Vec<Regex>,
}

/// Largest accepted rank.
const MAX_RANK: u64 = 1 << 20;

impl LoraConfig {
    /// Reads and checks `path`; returns the checked settings and the document.
    pub fn open(path: &Path) -> Result<(Self, Value), WeightError> {
        let document = read_json(path)?;
        let config = Self::parse(&Fields { path, document: &document })?;
        Ok((config, document))
    }

    fn parse(fields: &Fields<'_>) -> Result<Self, WeightError> {
        fields.check_keys()?;
        let rank = match fields.get("r") {
            None => 8,
            Some(value) => parse_rank(value).ok_or_else(|| fields.refuse("r", "an integer ≥ 1"))?,
        };
        let alpha = match fields.get("lora_alpha") {
            None => 8.0,
            Some(value) => value.as_f64().ok_or_else(|| fields.refuse("lora_alpha", "a number"))?,
        };
        let rslora = fields.flag("use_rslora")?;
        let expected = "a list of names, a pattern or \"all-linear\"";
        let targets = match fields.get("target_modules") {
            Some(Value::String(text)) if text.eq_ignore_ascii_case("all-linear") => {
                Some(Targets::AllLinear)
            }
            _ => fields.targets("target_modules")?,
        };
        let parameters = fields.names("target_parameters")?.unwrap_or_default();
        let alone = (!parameters.is_empty()).then(|| Targets::Names(Vec::new()));
        let targets = targets.or(alone).ok_or_else(|| fields.refuse("target_modules", expected))?;
        let layers = fields.layers()?;
        if layers.is_some() && !matches!(targets, Targets::Names(_)) {
            let expected = "it only beside a list of target_modules";
            return Err(fields.refuse("layers_to_transform", expected));
        }
        Ok(Self {
            rank,
            alpha,
            rslora,
            ranks: fields.patterns("rank_pattern", "integers ≥ 1 by module pattern", parse_rank)?,
            alphas: fields.patterns("alpha_pattern", "numbers by pattern", Value::as_f64)?,
            targets,
            excluded: fields.targets("exclude_modules")?,
            layers,
            parameters,
            saved: fields.names("modules_to_save")?.unwrap_or_default(),
            ties_weights: fields.flag("ensure_weight_tying")?,
            invocation: fields.tokens("alora_invocation_tokens")?,
        })
    }

    /// Rank of `module`, and the factor s on its B·A: alpha / r, for rsLoRA alpha / √r.
    ///
    /// As in PEFT, the first pattern that matches the module's path or a dotted suffix of it wins.
    pub fn rank_and_scale(&self, module: &str) -> (usize, f64) {
        let rank = first(&self.ranks, module).unwrap_or(self.rank);
        let alpha = first(&self.alphas, module).unwrap_or(self.alpha);
        let divisor = if self.rslora { (rank as f64).sqrt() } else { rank as f64 };
        (rank, alpha / divisor)
    }

    /// Whether the linear layer `module` is adapted.
    pub fn targets(&self, module: &str) -> bool {
        let named = |targets: &Targets| match targets {
            Targets::AllLinear => !is_head_or_table(module),
            Targets::Pattern(pattern) => pattern.is_match(module),
            Targets::Names(names) => names.iter().any(|name| is_suffix(name, module)),
        };
        if self.saves(module) || self.excluded.as_ref().is_some_and(named) || !named(&self.targets)
        {
            return false;
        }
        // A module that the list spells out in full is adapted whatever its layer.
        match (&self.targets, &self.layers) {
            (Targets::Names(names), Some(layers)) => {
                names.iter().any(|name| name == module) || layers.contain(module)
            }
            _ => true,
        }
    }

    /// Whether `target_parameters` names the parameter `name`.
    pub fn targets_parameter(&self, name: &str) -> bool {
        self.parameters.iter().any(|parameter| is_suffix(parameter, name))
    }

    /// Whether `module`, or one that contains it, is stored whole. PEFT compares the end of the
    /// path as text: "norm" names `model.norm` and every `input_layernorm` too.
    pub fn saves(&self, module: &str) -> bool {
        let ends = module.match_indices('.').map(|(at, _)| at).chain([module.len()]);
        ends.into_iter().any(|end| self.saved.iter().any(|name| module[..end].ends_with(name)))
    }
}

impl Layers {
    fn contain(&self, module: &str) -> bool {
        let index = if self.patterns.is_empty() {
            let mut parts = module.split('.').skip(2).peekable();
            std::iter::from_fn(|| Some((parts.next()?, parts.peek().is_some())))
                .find_map(|(part, inner)| inner.then(|| part.parse().ok()).flatten())
        } else {
            let matched = self.patterns.iter().find_map(|pattern| pattern.captures(module));
            matched.and_then(|groups| groups.name("idx")?.as_str().parse().ok())
        };
        index.is_some_and(|index| self.indexes.contains(&index))
    }
}

fn parse_rank(value: &Value) -> Option<usize> {
    let rank = value.as_u64().filter(|rank| (1..=MAX_RANK).contains(rank))?;
    usize::try_from(rank).ok()
}

fn first<T: Copy>(patterns: &[(Regex, T)], module: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| pattern.is_match(module)).map(|&(_, value)| value)
}

fn is_suffix(name: &str, module: &str) -> bool {
    module.strip_suffix(name).is_some_and(|head| head.is_empty() || head.ends_with('.'))
}

/// Modules that "all-linear" leaves out.
fn is_head_or_table(module: &str) -> bool {
    module == module_of(HEAD) || is_table(&format!("{module}.weight"))
}

/// The document with its path, for errors that name key and value.
struct Fields<'a> {
    path: &'a Path,
    document: &'a Value,
}

impl Fields<'_> {
    /// A value that is present and not null.
    fn get(&self, key: &str) -> Option<&Value> {
        self.document.get(key).filter(|value| !value.is_null())
    }

    /// Refuses every key whose value [`KEYS`] does not accept. A key that is not in the table may
    /// change the function, so it must be unset.
    fn check_keys(&self) -> Result<(), WeightError> {
        if self.get("peft_type").and_then(Value::as_str) != Some("LORA") {
            return Err(self.refuse("peft_type", "\"LORA\""));
        }
        for (name, value) in self.document.as_object().into_iter().flatten() {
            let known = KEYS.iter().find(|key| key.name == name);
            let rule = known.map_or(Rule::Unset, |key| key.rule);
            if !rule.accepts(value) {
                let why = known.map_or("a setting that is not known here", |key| key.meaning);
                return Err(self.refuse(name, &format!("{} ({why})", rule.expected())));
            }
        }
        Ok(())
    }

    fn flag(&self, key: &str) -> Result<bool, WeightError> {
        match self.get(key) {
            None => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| self.refuse(key, "true or false")),
        }
    }

    fn refuse(&self, key: &str, expected: &str) -> WeightError {
        WeightError::Json {
            path: self.path.to_owned(),
            key: key.to_owned(),
            expected: expected.to_owned(),
            got: self.get(key).map_or_else(|| "nothing".to_owned(), Value::to_string),
        }
    }

    fn names(&self, key: &str) -> Result<Option<Vec<String>>, WeightError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let names: Option<Vec<String>> = value.as_array().and_then(|list| {
            list.iter().map(|name| Some(name.as_str()?.to_owned())).collect::<Option<_>>()
        });
        match names {
            Some(names) if names.is_empty() => Ok(None),
            Some(names) => Ok(Some(names)),
            None => Err(self.refuse(key, "a list of module names")),
        }
    }

    /// Token ids; an empty list is none.
    fn tokens(&self, key: &str) -> Result<Option<Vec<u32>>, WeightError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = value.as_array().and_then(|list| list.iter().map(id).collect::<Option<Vec<_>>>());
        match ids {
            Some(ids) if ids.is_empty() => Ok(None),
            Some(ids) => Ok(Some(ids)),
            None => Err(self.refuse(key, "a list of token ids")),
        }
    }

    fn targets(&self, key: &str) -> Result<Option<Targets>, WeightError> {
        match self.get(key) {
            Some(Value::String(text)) if text.is_empty() => Ok(None),
            Some(Value::String(text)) => {
                self.regex(key, &format!("^(?:{text})$")).map(|regex| Some(Targets::Pattern(regex)))
            }
            _ => Ok(self.names(key)?.map(Targets::Names)),
        }
    }

    fn layers(&self) -> Result<Option<Layers>, WeightError> {
        let key = "layers_to_transform";
        let Some(value) = self.get(key) else {
            let pattern = self.get("layers_pattern");
            return match pattern.is_some_and(|p| p.as_str() != Some("") && !Rule::Unset.accepts(p))
            {
                true => Err(self.refuse("layers_pattern", "it only beside layers_to_transform")),
                false => Ok(None),
            };
        };
        let one = std::slice::from_ref(value);
        let list = value.as_array().map_or(one, Vec::as_slice);
        let indexes: Option<Vec<u64>> = list.iter().map(Value::as_u64).collect();
        let indexes = indexes.ok_or_else(|| self.refuse(key, "a layer index or a list of them"))?;
        if indexes.is_empty() {
            return Ok(None);
        }
        let key = "layers_pattern";
        let names = match self.get(key) {
            Some(Value::String(name)) if name.is_empty() => Vec::new(),
            Some(Value::String(name)) => vec![name.clone()],
            _ => self.names(key)?.unwrap_or_default(),
        };
        let patterns = names
            .iter()
            .map(|name| self.regex(key, &format!(r"^(?:|.*?\.){name}\.(?P<idx>\d+)\.")))
            .collect::<Result<_, _>>()?;
        Ok(Some(Layers { indexes, patterns }))
    }

    fn patterns<T>(
        &self,
        key: &str,
        expected: &str,
        parse: impl Fn(&Value) -> Option<T>,
    ) -> Result<Vec<(Regex, T)>, WeightError> {
        let empty = Map::new();
        let entries = match self.get(key) {
            None => &empty,
            Some(value) => value.as_object().ok_or_else(|| self.refuse(key, expected))?,
        };
        entries
            .iter()
            .map(|(pattern, value)| {
                let regex = self.regex(key, &format!(r"^(?:.*\.)?(?:{pattern})$"))?;
                Ok((regex, parse(value).ok_or_else(|| self.refuse(key, expected))?))
            })
            .collect()
    }

    fn regex(&self, key: &str, pattern: &str) -> Result<Regex, WeightError> {
        Regex::new(pattern).map_err(|error| {
            self.refuse(key, &format!("a regular expression without look-around ({error})"))
        })
    }
}
