//! `ladle import`: a base model into the local store.

use ladle::{
    config::StoreOptions,
    import::{ImportOptions, Quantise, import},
    kernels::Dtype,
};

use super::{
    arguments::{dtype, store},
    output::print,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to import.
    source: String,
    /// Storage type of dequantised weights: bf16, f16 or f32.
    #[arg(long, default_value = "bf16", value_parser = dtype)]
    dtype: Dtype,
    /// Store matrices in blocks, for serving on the CPU with per-row coefficients: q8_0, q6, q5_0,
    /// q5_1, q4_0, q4_1, iq4_nl, or keep for the blocks of a GGUF file.
    #[arg(long, alias = "quantize", value_name = "TYPE")]
    quantise: Option<Quantise>,
    /// Id to keep the model under, instead of the source's own.
    #[arg(long)]
    name: Option<String>,
    /// Copy a local directory instead of linking to it.
    #[arg(long)]
    copy: bool,
    /// Phi-3 of 128k: rotate with the factors of long contexts, at every length, instead of serving the
    /// original context alone.
    #[arg(long)]
    long_context: bool,
    #[command(flatten)]
    store: StoreOptions,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let store = store(&args.store)?;
    let options = ImportOptions {
        dtype: args.dtype,
        quantise: args.quantise,
        name: args.name,
        copy: args.copy,
        long_context: args.long_context,
        offline: store.offline,
        ..ImportOptions::new(store.models_dir)
    };
    let imported = import(&args.source, &options)?;
    print(&format!("{} {}", imported.id, imported.dir.display()))
}
