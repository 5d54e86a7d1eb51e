//! Arguments that several commands take, and their types.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::Args;
use ladle::{
    config::StoreOptions,
    import::{Store, default_models_dir},
    kernels::Dtype,
    preference::{AlphaForm, Form, LambdaRule, Menu, MixingMatrix, Solution},
    soup::{OpenOptions, Soup},
};

/// The store of imported models that the options name.
pub fn store(options: &StoreOptions) -> anyhow::Result<Store> {
    let models_dir = options
        .models_dir
        .clone()
        .or_else(default_models_dir)
        .ok_or_else(|| anyhow!("no place for models: set --models-dir, LADLE_HOME or HOME"))?;
    Ok(Store { models_dir, offline: options.offline() })
}

/// Opens a soup, with its digests checked.
pub fn open(soup: &Path, base: Option<PathBuf>, options: &StoreOptions) -> anyhow::Result<Soup> {
    Ok(store(options)?
        .open(soup, OpenOptions { base, verify_digests: true, ..OpenOptions::default() })?)
}

/// Preference, extrapolation and rule of a command line; the soup's defaults stand for absent ones.
pub struct Chosen<'a> {
    /// A preference as text.
    pub preference: Option<&'a str>,
    /// An extrapolation as JSON.
    pub alpha: Option<&'a str>,
    /// How λ follows from B⁻¹μ.
    pub lambda: Option<LambdaRule>,
}

impl Chosen<'_> {
    /// Looks the texts up in the menu and solves them.
    pub fn solve(&self, menu: &Menu, mixing: &MixingMatrix) -> anyhow::Result<Solution> {
        let preference = match self.preference {
            None => menu.default_preference.clone(),
            Some(text) => menu.preference("preference", Form::from_text("preference", text)?)?,
        };
        let alpha = match self.alpha {
            None => menu.default_alpha.clone(),
            Some(text) => {
                let value = serde_json::from_str(text)
                    .with_context(|| format!("alpha is {text:?}, expected a number or JSON"))?;
                menu.alpha("alpha", AlphaForm::from_json("alpha", value)?)?
            }
        };
        let rule = self.lambda.unwrap_or(menu.default_rule);
        Ok(mixing.solve_by(rule, &preference, &alpha))
    }
}

/// B: one of the two.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct MixingArgs {
    /// B is circulant: BETA on the diagonal, the rest of each column spread evenly.
    #[arg(long)]
    pub beta: Option<f64>,
    /// B as JSON, by rows: [[0.7,0.3],[0.3,0.7]].
    #[arg(long, value_parser = matrix, value_name = "JSON")]
    pub matrix: Option<Rows>,
}

/// Rows of a matrix; a type of its own, because clap reads a `Vec` as a repeated flag.
#[derive(Debug, Clone)]
pub struct Rows(pub Vec<Vec<f64>>);

pub fn matrix(text: &str) -> Result<Rows, String> {
    serde_json::from_str(text).map(Rows).map_err(|e| format!("expected rows of numbers: {e}"))
}

pub fn dtype(text: &str) -> Result<Dtype, String> {
    [Dtype::Bf16, Dtype::F16, Dtype::F32]
        .into_iter()
        .find(|dtype| dtype.to_string() == text)
        .ok_or_else(|| "expected bf16, f16 or f32".into())
}

pub fn named_path(text: &str) -> Result<(String, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("expected NAME=DIR")?;
    Ok((name.into(), path.into()))
}
