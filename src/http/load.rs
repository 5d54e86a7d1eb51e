//! From a configuration to a running soup.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::{Map, Value, json};

use super::{
    app::Served,
    observe::cache_event,
    preference::{Menu, Solved},
};
use crate::{
    chat::{ChatError, ChatTemplate},
    config::{Processor, ServeConfig},
    engine::{
        self, CpuBackend, CpuOptions, CudaBackend, CudaOptions, EngineConfig, EngineHandle, Limits,
        OnCacheEvent, OpenError, StartError, cost::Machine,
    },
    kernels::cuda::{Gpu, image::kernel_caches},
    soup::{ManifestError, OpenOptions, Soup, SoupError, base::default_models_dir},
    telemetry::Telemetry,
    tokenizer::{Tokenizer, TokenizerError},
};

/// Why a soup cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Its files are not right.
    #[error(transparent)]
    Soup(#[from] SoupError),
    /// Its manifest is not right.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The base's tokenizer is not right.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The base's chat template is not right.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// Its weights do not make a model, or the budgets do not hold it.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The engine does not start.
    #[error(transparent)]
    Engine(#[from] StartError),
    /// There is no place for imported models.
    #[error("no directory for base models: give --models-dir, or set LADLE_HOME or HOME")]
    Home,
    /// Loading panicked.
    #[error("loading failed: {0}")]
    Panicked(String),
}

/// Opens the soup and starts its engine.
pub fn load(config: &ServeConfig, telemetry: Arc<Telemetry>) -> Result<Served, LoadError> {
    let options = OpenOptions {
        base: config.base.clone(),
        models_dir: config.models_dir.clone().or_else(default_models_dir).ok_or(LoadError::Home)?,
        offline: config.offline,
        verify_digests: config.verify,
    };
    let soup = Soup::open(&config.soup, &options)?;
    let tokenizer = Tokenizer::from_dir(&soup.base_dir)?;
    let chat = ChatTemplate::from_dir(&soup.base_dir)?;
    let menu = Menu::of(&soup.manifest)?;
    let (name, digest, mixing) =
        (soup.manifest.name.clone(), soup.digest.clone(), soup.mixing.clone());
    let mut description = describe(&soup, &menu);
    let engine = start(&soup, tokenizer.clone(), config, telemetry)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut served = Served {
        engine,
        name,
        digest,
        menu,
        mixing,
        tokenizer,
        chat,
        description: Value::Null,
        created: now.as_secs(),
    };
    description["context"] = served.context().into();
    description["chat"] = served.chat.is_some().into();
    served.description = description;
    Ok(served)
}

fn start(
    soup: &Soup,
    tokenizer: Tokenizer,
    config: &ServeConfig,
    telemetry: Arc<Telemetry>,
) -> Result<EngineHandle, LoadError> {
    let bytes = |budget: Option<u64>| budget.map(|b| usize::try_from(b).unwrap_or(usize::MAX));
    let told = telemetry.clone();
    let defaults = EngineConfig::default();
    let limits = Limits {
        step_tokens: config.max_step_tokens,
        lanes: config.max_sequences,
        ..defaults.limits
    };
    let engine = EngineConfig {
        limits,
        max_waiting: config.max_queue,
        max_context: config.max_context.unwrap_or(usize::MAX),
        merge_mode: config.merge_mode,
        observer: Some(telemetry),
        ..defaults
    };
    let told: OnCacheEvent = Arc::new(move |event| cache_event(&told, event));
    match config.device {
        Processor::Cpu => {
            let defaults = CpuOptions::default();
            let options = CpuOptions {
                threads: config.threads,
                kv_bytes: bytes(config.kv_cache).unwrap_or(defaults.kv_bytes),
                merged_bytes: bytes(config.merge_cache).unwrap_or(defaults.merged_bytes),
                merge_mode: config.merge_mode,
                on_cache_event: Some(told),
                ..defaults
            };
            Ok(engine::start(CpuBackend::open(soup, &options)?, tokenizer, engine)?)
        }
        Processor::Cuda(ordinal) => {
            let options = CudaOptions {
                device_bytes: bytes(config.device_memory),
                kv_bytes: bytes(config.kv_cache),
                merged_bytes: bytes(config.merge_cache),
                merge_mode: config.merge_mode,
                step_rows: config.max_step_tokens,
                logit_rows: engine.limits.logit_rows,
                on_cache_event: Some(told),
            };
            let gpu = Gpu::open(ordinal, &kernel_caches()).map_err(OpenError::from)?;
            let engine = EngineConfig { machine: Machine::GPU, ..engine };
            Ok(engine::start(CudaBackend::open(soup, gpu, &options)?, tokenizer, engine)?)
        }
    }
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
    let default = soup.mixing.solve(&menu.default_preference, &menu.default_alpha);
    json!({
        "name": manifest.name,
        "digest": soup.digest,
        "description": manifest.description,
        "objectives": manifest.objectives.iter().map(|objective| json!({
            "name": objective.name,
            "description": objective.description,
            "range": objective.range,
        })).collect::<Vec<_>>(),
        "matrix": soup.mixing.rows(),
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
