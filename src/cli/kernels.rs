//! `ladle kernels`: GPU kernels compiled ahead.

use std::path::PathBuf;

use anyhow::{Context, anyhow};
use ladle::kernels::cuda::image;

use super::output::print;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Architecture to compile for, such as sm_80 or sm_90; repeat.
    #[arg(long = "arch", required = true, value_name = "sm_NN")]
    architectures: Vec<String>,
    /// Directory to write to [default: where `serve` looks].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let default = || image::kernel_caches().into_iter().next();
    let out = args.out.or_else(default).ok_or_else(|| anyhow!("give --out"))?;
    for architecture in &args.architectures {
        let path = image::keep(&out, architecture, &image::compile(architecture)?)
            .with_context(|| format!("writing to {}", out.display()))?;
        print(&path.display().to_string())?;
    }
    Ok(())
}
