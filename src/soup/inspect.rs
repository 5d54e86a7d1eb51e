//! `ladle inspect`: what is in a soup.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
};

use serde::Serialize;

use super::{
    activation::{Activation, ActiveFrom},
    adapter::Adapter,
    checkpoint::Checkpoint,
    digest,
    geometry::Geometry,
    manifest::{AlphaEntry, BackboneKind, Mapping, Objective},
    open::{Backbone, Soup},
    weights::WeightFile,
};
use crate::{kernels::HostTensor, preference::LambdaRule};

/// What is in a soup, for people (`Display`) and programs (JSON).
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// The soup's name.
    pub name: String,
    pub digest: String,
    pub dir: PathBuf,
    /// The base model.
    pub base: WeightSet,
    /// The supervised adapter.
    pub sft: Option<WeightSet>,
    /// The rows that the backbones act on.
    pub activation: Activation,
    /// The first of them in a sequence.
    pub active_from: ActiveFrom,
    pub objectives: Vec<Objective>,
    /// Backbones, in the order of the columns of B.
    pub backbones: Vec<WeightSet>,
    /// The matrix that maps μ to λ.
    pub mapping: Mapping,
    /// Rows of that matrix.
    pub matrix: Vec<Vec<f64>>,
    /// Its condition number.
    pub condition: f64,
    /// How λ follows from its inverse.
    pub lambda: LambdaRule,
    /// Default extrapolation.
    pub alpha: AlphaEntry,
    /// Bounds of α.
    pub bounds: [f64; 2],
    /// Presets: weights by objective, as written.
    pub presets: BTreeMap<String, BTreeMap<String, f64>>,
    /// Whether a measured front lies beside the manifest.
    pub front: bool,
    /// Distances and angles of the backbones.
    pub geometry: Geometry,
}

/// One set of weights.
#[derive(Debug, Clone, Serialize)]
pub struct WeightSet {
    pub name: String,
    /// `adapter` or `full`.
    pub kind: BackboneKind,
    pub dir: PathBuf,
    /// Bytes of its weight files.
    pub bytes: u64,
    /// Number of stored values.
    pub parameters: u64,
    /// Storage types.
    pub dtypes: Vec<String>,
    /// Tensors, or for an adapter adapted modules.
    pub modules: usize,
    /// Ranks that occur, ascending; adapters only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ranks: Vec<usize>,
    /// Tensors that an adapter stores whole.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub saved: Vec<String>,
    /// SHA-256 of its weight files, as they are.
    pub sha256: BTreeMap<String, String>,
}

impl Inspection {
    /// Inspects an opened soup; reads every weight once for the digests.
    pub fn of(soup: &Soup) -> Self {
        let manifest = &soup.manifest;
        let backbones = manifest.backbones.iter().zip(&soup.backbones);
        Self {
            name: manifest.name.clone(),
            digest: soup.digest.clone(),
            dir: soup.dir.clone(),
            base: WeightSet::full("base", &soup.base),
            sft: soup.sft.as_ref().map(|sft| WeightSet::adapter("sft", sft)),
            activation: manifest.activation,
            active_from: soup.active_from.clone(),
            objectives: manifest.objectives.clone(),
            backbones: backbones
                .map(|(entry, backbone)| match backbone {
                    Backbone::Adapter(adapter) => WeightSet::adapter(&entry.name, adapter),
                    Backbone::Full(checkpoint) => WeightSet::full(&entry.name, checkpoint),
                })
                .collect(),
            mapping: manifest.mixing.mapping,
            matrix: soup.mixing.rows(),
            condition: soup.mixing.condition(),
            lambda: manifest.mixing.lambda,
            alpha: manifest.extrapolation.alpha.clone(),
            bounds: manifest.extrapolation.bounds,
            presets: manifest.presets.clone(),
            front: soup.front.is_some(),
            geometry: Geometry::of(soup),
        }
    }
}

impl WeightSet {
    fn adapter(name: &str, adapter: &Adapter) -> Self {
        let tensors: Vec<_> = adapter.tensors().map(|(_, tensor)| tensor).collect();
        let ranks: BTreeSet<_> = adapter
            .modules
            .values()
            .filter_map(|lora| lora.down.shape().first().copied())
            .collect();
        let files = std::slice::from_ref(adapter.file());
        let dir = adapter.dir().to_owned();
        Self {
            modules: adapter.modules.len(),
            ranks: ranks.into_iter().collect(),
            saved: adapter.saved.keys().cloned().collect(),
            ..Self::new(name, BackboneKind::Adapter, dir, files, &tensors)
        }
    }

    fn full(name: &str, checkpoint: &Checkpoint) -> Self {
        let tensors: Vec<_> = checkpoint.tensors().values().collect();
        let dir = checkpoint.dir().to_owned();
        Self::new(name, BackboneKind::Full, dir, checkpoint.files(), &tensors)
    }

    fn new(
        name: &str,
        kind: BackboneKind,
        dir: PathBuf,
        files: &[WeightFile],
        tensors: &[&HostTensor],
    ) -> Self {
        let dtypes: BTreeSet<_> = tensors.iter().map(|tensor| tensor.dtype().to_string()).collect();
        Self {
            name: name.to_owned(),
            kind,
            bytes: files.iter().map(|file| file.bytes().len() as u64).sum(),
            parameters: tensors.iter().map(|tensor| tensor.len() as u64).sum(),
            dtypes: dtypes.into_iter().collect(),
            modules: tensors.len(),
            ranks: Vec::new(),
            saved: Vec::new(),
            sha256: digest::of_files(&dir, files.iter()),
            dir,
        }
    }
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "soup       {}  ({})", self.name, self.dir.display())?;
        writeln!(f, "digest     {}", self.digest)?;
        for part in [&self.base].into_iter().chain(&self.sft).chain(&self.backbones) {
            write!(f, "{part}")?;
        }
        let active = match &self.active_from {
            ActiveFrom::Start => "all rows".to_owned(),
            ActiveFrom::GenerationPrompt => "the answer, from the generation prompt".to_owned(),
            ActiveFrom::Tokens(tokens) => format!("the answer, from the tokens {tokens:?}"),
        };
        writeln!(f, "active on  {active}")?;
        writeln!(f, "objectives")?;
        for objective in &self.objectives {
            write!(f, "  {:<14} {}", objective.name, objective.description)?;
            match objective.range {
                Some([low, high]) => writeln!(f, "  (reward {low} to {high})")?,
                None => writeln!(f)?,
            }
        }
        let mapping = match self.mapping {
            Mapping::Nominal => "nominal",
            Mapping::Realised => "realised",
        };
        let clamped = if self.lambda.is_exact() { "" } else { ", λ clamped to the simplex" };
        writeln!(f, "B          {mapping}, condition number {:.4}{clamped}", self.condition)?;
        for row in &self.matrix {
            let row: Vec<_> = row.iter().map(|entry| format!("{entry:.4}")).collect();
            writeln!(f, "  {}", row.join("  "))?;
        }
        let [min, max] = self.bounds;
        let alpha = match &self.alpha {
            AlphaEntry::Scalar(alpha) => alpha.to_string(),
            AlphaEntry::ByObjective(table) => weights(table),
        };
        writeln!(f, "alpha      {alpha}, allowed {min} to {max}")?;
        for (name, preference) in &self.presets {
            writeln!(f, "preset     {name}: {}", weights(preference))?;
        }
        writeln!(f, "front      {}", if self.front { "measured (front.json)" } else { "none" })?;
        write!(f, "{}", self.geometry)
    }
}

fn weights(table: &BTreeMap<String, f64>) -> String {
    table.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
}

impl fmt::Display for WeightSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            BackboneKind::Adapter => "adapter",
            BackboneKind::Full => "full",
        };
        let (mib, millions) = (self.bytes as f64 / (1 << 20) as f64, self.parameters as f64 / 1e6);
        write!(f, "{kind:<10} {:<14} {millions:.2} M values, {mib:.1} MiB, ", self.name)?;
        write!(f, "{}", self.dtypes.join("+"))?;
        if !self.ranks.is_empty() {
            let ranks: Vec<_> = self.ranks.iter().map(usize::to_string).collect();
            write!(f, ", {} modules of rank {}", self.modules, ranks.join("/"))?;
        }
        if !self.saved.is_empty() {
            write!(f, ", {} tensors whole", self.saved.len())?;
        }
        writeln!(f, "  ({})", self.dir.display())?;
        for (file, digest) in &self.sha256 {
            writeln!(f, "  {digest}  {file}")?;
        }
        Ok(())
    }
}
