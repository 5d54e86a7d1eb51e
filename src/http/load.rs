//! From a configuration to a running soup.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::{Map, Value, json};

use super::{
    keys::KeyError,
    metrics::cache_event,
    served::{Beside, Served},
};
use crate::{
    chat::{ChatError, ChatTemplate, ControlTokens, tools::CallFormat},
    config::{Processor, Residence, ServeConfig},
    engine::{
        self, OpenError, Pin, Shared,
        budget::{Budgets, Held},
        budgets,
    },
    files::home,
    grammar::Compiler,
    import::{Store, StoreError, default_models_dir},
    memory,
    preference::{Front, Menu, Solved},
    soup::{ManifestError, OpenOptions, Soup},
    telemetry::Telemetry,
    tokenizer::{self, Tokenizer, TokenizerError},
};

/// Why a soup cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// Its weights do not make a model, the budgets do not hold it, or the engine does not start.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A preset to pin does not exist.
    #[error("pin is {got:?}, expected a preset of the soup: {known}")]
    Pin {
        /// The name given.
        got: String,
        /// The presets that exist.
        known: String,
    },
    /// The tokenizer's special tokens are too many to search for.
    #[error("the tokenizer's special tokens: {0}")]
    Control(#[from] regex::Error),
    #[error("no directory for {0}, or set LADLE_HOME or HOME")]
    Home(&'static str),
    /// The named keys ask for presets that it does not have.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// Another soup has its name.
    #[error("a soup named {0:?} is served already, expected soups of different names")]
    Repeated(String),
    #[error("loading failed: {0}")]
    Panicked(String),
}

/// Opens the soup and starts its engine, beside those that run.
pub fn load(
    config: &ServeConfig,
    telemetry: Arc<Telemetry>,
    beside: &Beside,
) -> Result<Served, LoadError> {
    let store = store(config)?;
    store.sweep();
    let options = OpenOptions {
        base: config.base.clone(),
        verify_digests: config.verify,
        residence: config.weights,
        ..OpenOptions::default()
    };
    let (config, holds) = &within_memory(&store, config, &options, beside)?;
    let soup = store.open(&config.soup, options)?;
    let tokenizer = Tokenizer::from_dir(&soup.base_dir)?;
    let chat = ChatTemplate::from_dir(&soup.base_dir)?;
    let mut tokenizer_info = tokenizer::settings(&soup.base_dir)?;
    if let Some(chat) = &chat {
        tokenizer_info["chat_template"] = chat.source().into();
    }
    let calls = call_format(chat.as_ref(), &tokenizer);
    let control = ControlTokens::new(tokenizer.added_tokens(), chat.as_ref())?;
    let menu = soup.manifest.menu()?;
    let (name, digest, mixing) =
        (soup.manifest.name.clone(), soup.digest.clone(), soup.mixing.clone());
    let front = match &config.base {
        Some(_) => Err("the soup's front, measured on its own base, predicts nothing".to_owned()),
        None => Front::read(soup.front.as_ref(), &menu, &mixing),
    };
    if let (Some(_), Err(reason)) = (&soup.front, &front) {
        tracing::warn!("{reason}");
    }
    let mut description = describe(&soup, &menu);
    description["front_method"] = json!(front.as_ref().ok().and_then(Front::method));
    description["unpredicted"] = json!(front.as_ref().err());
    let shared = Shared {
        observer: telemetry.clone(),
        on_cache_event: Arc::new(move |event| cache_event(&telemetry, event)),
        turns: beside.turns.clone(),
    };
    let pinned = pinned(&soup, &menu, &config.pin)?;
    let engine = engine::open(&soup, tokenizer.clone(), config, pinned, shared)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let grammars = Compiler::new(tokenizer.clone(), engine.bounds().vocabulary);
    let (created, former) = (now.as_secs(), beside.former.as_ref());
    let mut served = Served {
        engine,
        generation: former.map_or(created, |former| created.max(former.generation + 1)),
        source: config
            .address
            .as_ref()
            .map_or_else(|| json!(config.soup), |at| at.to_string().into()),
        holds: *holds,
        weights: soup.weight_files().map(|file| (file.seen.clone(), file.bytes().len())).collect(),
        name,
        digest,
        base: soup.base_dir.clone(),
        merge_cache: config.merge_cache,
        menu,
        mixing,
        front,
        active_from: soup.active_from.clone(),
        tokenizer,
        grammars,
        chat,
        calls,
        tokenizer_info,
        control,
        description: Value::Null,
        created,
        unchanged: Mutex::new(soup.seen()),
    };
    description["context"] = served.context().into();
    description["chat"] = served.chat.is_some().into();
    served.description = description;
    Ok(served)
}

/// The configuration with the directory of its soup; one at an address is fetched, as far as it is not
/// there.
pub fn fetched(config: ServeConfig) -> Result<ServeConfig, LoadError> {
    let Some(address) = &config.address else { return Ok(config) };
    let cache = config.soup_cache.clone().or_else(|| Some(home()?.join("soups")));
    let cache = cache.ok_or(LoadError::Home("fetched soups: give --soup-cache"))?;
    let soup = store(&config)?.fetch(address, &cache, config.base.is_some())?;
    Ok(ServeConfig { soup, ..config })
}

/// Whether the soup of a configuration is the one that is served: same texts, front and weight files.
pub fn is_served(config: &ServeConfig, served: &Served) -> Result<bool, LoadError> {
    let options = OpenOptions { base: config.base.clone(), ..OpenOptions::default() };
    let soup = store(config)?.open(&config.soup, options)?;
    let unchanged = served.unchanged.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(soup.digest == served.digest
        && json!(soup.front) == served.description["front"]
        && soup.seen() == *unchanged)
}

fn store(config: &ServeConfig) -> Result<Store, LoadError> {
    let models_dir = config.models_dir.clone().or_else(default_models_dir);
    Ok(Store {
        models_dir: models_dir.ok_or(LoadError::Home("base models: give --models-dir"))?,
        offline: config.offline,
    })
}

/// The configuration with the budgets that the memory of the process leaves, and the bytes that the
/// soup then holds besides its files. Weights are mapped for it and not read, so that a soup that does
/// not fit, with those that are served `beside` it, is refused before it is copied.
fn within_memory(
    store: &Store,
    config: &ServeConfig,
    options: &OpenOptions,
    beside: &Beside,
) -> Result<(ServeConfig, usize), LoadError> {
    let Some(ceiling) = config.max_memory.or_else(memory::limit) else {
        return Ok((config.clone(), 0));
    };
    let mapped = Residence::Mapped;
    let looked = OpenOptions { verify_digests: false, residence: mapped, ..options.clone() };
    let soup = store.open(&config.soup, looked)?;
    let ceiling = usize::try_from(ceiling).unwrap_or(usize::MAX);
    let (beside, in_memory) = beside.holds();
    let shared = soup.weight_files().filter(|file| in_memory.contains(&file.seen));
    let shared: usize = shared.map(|file| file.bytes().len()).sum();
    let (held, Budgets { kv, merged }) = budgets(&soup, config, ceiling, (beside, shared))?;
    let Held { weights, process, activations, bodies, requests, beside } = held;
    tracing::info!(
        max_memory = ceiling,
        weights,
        process,
        activations,
        bodies,
        requests,
        beside,
        kv_cache = kv,
        merge_cache = merged,
        "memory is divided"
    );
    let holds = weights + shared - soup.weight_bytes() + activations + kv + merged;
    let config = match config.device {
        Processor::Cpu => ServeConfig {
            kv_cache: Some(kv as u64),
            merge_cache: Some(merged as u64),
            ..config.clone()
        },
        Processor::Cuda(_) => config.clone(),
    };
    Ok((config, holds))
}

/// How the model writes calls of tools, or why it cannot be offered any.
fn call_format(
    chat: Option<&ChatTemplate>,
    tokenizer: &Tokenizer,
) -> Result<Arc<CallFormat>, &'static str> {
    let format = chat.ok_or("the base model has no chat template")?.call_format()?;
    // Special tokens are not part of an answer's text.
    let tokens = tokenizer.encode(&format.literals(), false).unwrap_or_default();
    match tokens.iter().any(|id| tokenizer.is_special(*id)) {
        false => Ok(Arc::new(format)),
        true => Err("the chat template writes calls with special tokens, which is not known here"),
    }
}

/// The models of the presets to pin, each under the soup's default extrapolation and rule for λ.
fn pinned(soup: &Soup, menu: &Menu, names: &[String]) -> Result<Vec<Pin>, LoadError> {
    let pin = |name: &String| {
        let preference = soup.manifest.preset(name).ok_or_else(|| {
            let known: Vec<&str> = menu.presets.iter().map(|(name, _)| name.as_str()).collect();
            LoadError::Pin { got: name.clone(), known: known.join(", ") }
        })?;
        let solution = soup.mixing.solve_by(menu.default_rule, &preference, &menu.default_alpha);
        Ok(Pin { name: name.clone(), coefficients: solution.coefficients })
    };
    names.iter().map(pin).collect()
}

/// `GET /v1/soup`.
fn describe(soup: &Soup, menu: &Menu) -> Value {
    let manifest = &soup.manifest;
    let named = |weights: &[f64]| -> Map<String, Value> {
        menu.objectives
            .iter()
            .zip(weights)
            .map(|(name, weight)| (name.clone(), (*weight).into()))
            .collect()
    };
    let presets: Map<String, Value> =
        menu.presets.iter().map(|(name, weights)| (name.clone(), named(weights).into())).collect();
    let default =
        soup.mixing.solve_by(menu.default_rule, &menu.default_preference, &menu.default_alpha);
    json!({
        "name": manifest.name,
        "digest": soup.digest,
        "description": manifest.description,
        "examples": manifest.examples,
        "objectives": manifest.objectives.iter().map(|objective| json!({
            "name": objective.name,
            "description": objective.description,
            "range": objective.range,
        })).collect::<Vec<_>>(),
        "activation": manifest.activation,
        "matrix": soup.mixing.rows(),
        "lambda_rule": menu.default_rule,
        "presets": presets,
        "default": named(menu.default_preference.weights()),
        "alpha": {
            "default": Solved::new(menu, &default).alpha,
            "min": menu.alpha_bounds.0,
            "max": menu.alpha_bounds.1,
        },
        "front": soup.front,
    })
}
