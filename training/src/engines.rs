//! What other engines need to train the backbones of a configuration.
//!
//! The configuration is read and checked here; what an engine takes of it, in which words, is known to
//! `bone-export` of training/engines/trl alone, which also draws PEFT's first adapters.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    checkpoint::{CheckpointError, write_toml},
    config::Config,
};

/// A trainer that is not this one.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Engine {
    Trl,
    Openrlhf,
    Verl,
}

/// What is written, and where.
#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    /// The engine that trains.
    #[arg(long, value_enum)]
    pub engine: Engine,
    /// The run's configuration.
    pub config: PathBuf,
    /// Directory to make: the configuration with every default, and a directory for each backbone.
    pub out: PathBuf,
    /// Backbones, where not all; repeat.
    #[arg(long, value_name = "NAME")]
    pub backbone: Vec<String>,
    /// θ_sft: the base's directory, a supervised adapter merged into it.
    #[arg(long, value_name = "DIR")]
    pub base: PathBuf,
    /// Where `train-backbones serve-rewards` listens for the first backbone; for the others at the ports
    /// after it. BONE_REWARDS of a script that is started beats it.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8090", value_parser = place)]
    pub rewards: (String, u16),
    /// GPUs of the machine.
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub gpus: usize,
    /// The program of training/engines/trl that writes the engine's files.
    #[arg(long, value_name = "PROGRAM", default_value = "bone-export")]
    pub exporter: PathBuf,
}

fn place(text: &str) -> Result<(String, u16), String> {
    let parsed = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let (host, port) = parsed.filter(|(host, _)| !host.is_empty()).ok_or("expected HOST:PORT")?;
    Ok((host.to_owned(), port))
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(transparent)]
    Write(#[from] CheckpointError),
    #[error("--backbone is {got:?}, expected one of {known}")]
    Backbone { got: String, known: String },
    /// The program is not there.
    #[error(
        "{program}: {error}; install it with `pip install training/engines/trl`, or give --exporter"
    )]
    Program { program: PathBuf, error: io::Error },
    /// The program refused.
    #[error("{0}")]
    Refused(String),
}

/// Writes `settings.out`, whole or not at all; data paths of `config` are relative to `data`.
pub fn export(config: &Config, data: &Path, settings: &Settings) -> Result<(), ExportError> {
    let known = config.policies();
    if let Some(got) = settings.backbone.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(ExportError::Backbone { got: got.clone(), known: known.join(", ") });
    }
    let out = &settings.out;
    fs::create_dir(out).map_err(CheckpointError::io(out))?;
    let written = write(config, data, settings);
    if written.is_err() {
        // Scripts name where they are, so they are written in their place; what is not whole goes.
        let _ = fs::remove_dir_all(out);
    }
    written
}

fn write(config: &Config, data: &Path, settings: &Settings) -> Result<(), ExportError> {
    let absolute = |path: &Path| path.canonicalize().map_err(CheckpointError::io(path));
    let (out, data) = (absolute(&settings.out)?, absolute(data)?);
    let file = out.join("config.toml");
    write_toml(&file, config)?;
    let (host, first) = &settings.rewards;
    for (port, name) in (*first..).zip(config.policies()) {
        if !settings.backbone.is_empty() && !settings.backbone.iter().any(|wanted| wanted == name) {
            continue;
        }
        let engine = match settings.engine {
            Engine::Trl => "trl",
            Engine::Openrlhf => "openrlhf",
            Engine::Verl => "verl",
        };
        let mut program = Command::new(&settings.exporter);
        program.arg(&file).args(["--engine", engine, "--backbone", name]);
        program.args(["--rewards", &format!("http://{host}:{port}")]);
        program.args(["--gpus", &settings.gpus.to_string()]).arg("--base").arg(&settings.base);
        program.arg("--data").arg(&data).arg("--out").arg(out.join(name)).stdin(Stdio::null());
        let output = program
            .output()
            .map_err(|error| ExportError::Program { program: settings.exporter.clone(), error })?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(ExportError::Refused(said.trim().to_owned()));
        }
    }
    Ok(())
}
