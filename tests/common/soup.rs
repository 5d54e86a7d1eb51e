//! The soups of tests/fixtures and their models written out, the slow and plain way.
#![allow(dead_code)] // no test file needs all of it

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use ladle::{
    kernels::HostTensor,
    preference::Coefficients,
    soup::{Adapter, Backbone, OpenOptions, Soup, weights::WeightFile},
};
use serde_json::Value;

pub const SOUPS: [&str; 3] = ["soup-tiny", "soup-tiny-full", "soup-tiny-mixed"];

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

pub fn options() -> OpenOptions {
    OpenOptions { verify_digests: true, ..OpenOptions::default() }
}

pub fn open(name: &str) -> Soup {
    Soup::open(&fixture(name), &options()).unwrap()
}

pub fn reference(name: &str) -> (Value, BTreeMap<String, HostTensor>) {
    let json = fs::read(fixture(&format!("{name}-reference.json"))).unwrap();
    let path = fixture(&format!("{name}-reference.safetensors"));
    let (_, tensors) = WeightFile::open(&path).unwrap();
    (serde_json::from_slice(&json).unwrap(), tensors.into_iter().collect())
}

pub fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

pub fn values(tensor: &HostTensor) -> Vec<f64> {
    tensor.to_f32().into_iter().map(f64::from).collect()
}

/// θ of one model, written out: start + s·B·A, or the tensor that replaces it.
pub fn with_adapter(start: &[f64], adapter: &Adapter, name: &str) -> Vec<f64> {
    if let Some(saved) = adapter.saved.get(name) {
        return values(saved);
    }
    let mut out = start.to_vec();
    let Some(lora) = name.strip_suffix(".weight").and_then(|m| adapter.modules.get(m)) else {
        return out;
    };
    let (down, up) = (values(&lora.down), values(&lora.up));
    let (rank, width) = (lora.down.shape()[0], lora.down.shape()[1]);
    for (row, out) in out.chunks_mut(width).enumerate() {
        for r in 0..rank {
            let factor = lora.scale * up[row * rank + r];
            out.iter_mut().zip(&down[r * width..]).for_each(|(o, a)| *o += factor * a);
        }
    }
    out
}

/// Σ cᵢθᵢ + c_sft θ_sft of one tensor, every model written out.
pub fn merged(soup: &Soup, c: &Coefficients, name: &str) -> Vec<f64> {
    let base = values(&soup.base.get(name).unwrap());
    let sft = match &soup.sft {
        Some(adapter) => with_adapter(&base, adapter, name),
        None => base,
    };
    let mut out: Vec<f64> = sft.iter().map(|v| c.sft * v).collect();
    for (backbone, c) in soup.backbones.iter().zip(&c.backbones) {
        let theta = match backbone {
            Backbone::Adapter(adapter) => with_adapter(&sft, adapter, name),
            Backbone::Full(checkpoint) => values(&checkpoint.get(name).unwrap()),
        };
        out.iter_mut().zip(theta).for_each(|(o, t)| *o += c * t);
    }
    out
}

pub fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
