//! Committed soups against PEFT's and torch's merges of them, and transformers' logits
//! (tests/reference/make_tiny_soup.py).

use std::path::{Path, PathBuf};

use ladle::{
    kernels::{Dtype, HostTensor},
    merge::{Merger, SoupPlan, mixed_decoder},
    model::{config::ModelConfig, decoder::Decoder, linear::Parameter},
    preference::Coefficients,
    soup::{OpenOptions, Soup},
};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::mixed::{assert_same, logits};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn values(tensors: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let view = tensors.tensor(name).unwrap();
    assert_eq!(view.dtype(), safetensors::Dtype::F32);
    let elements = view.data().chunks_exact(4);
    elements.map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

/// What c the stored logits of that name belong to.
fn coefficients(soup: &Soup, document: &Value, name: &str) -> Coefficients {
    let n = soup.backbones.len();
    if let Some(case) = name.strip_prefix("case") {
        let case = &document["cases"][case.parse::<usize>().unwrap()];
        let backbones = numbers(&case["coefficients"]);
        return Coefficients { backbones, sft: case["sft"].as_f64().unwrap() };
    }
    let mut c = Coefficients { backbones: vec![0.0; n], sft: 0.0 };
    match soup.manifest.backbones.iter().position(|backbone| backbone.name == name) {
        Some(hot) => c.backbones[hot] = 1.0,
        None => c.sft = 1.0,
    }
    c
}

#[test]
fn both_modes_have_the_weights_and_logits_of_peft_and_transformers() {
    for name in ["soup-tiny", "soup-tiny-full", "soup-tiny-mixed"] {
        let options = OpenOptions { verify_digests: true, ..OpenOptions::default() };
        let soup = Soup::open(&fixture(name), &options).unwrap();
        let config = ModelConfig::from_json(soup.base.config()).unwrap();
        let document = std::fs::read(fixture(&format!("{name}-reference.json"))).unwrap();
        let document: Value = serde_json::from_slice(&document).unwrap();
        let tokens: Vec<u32> = numbers(&document["tokens"]).iter().map(|&id| id as u32).collect();
        let stored = std::fs::read(fixture(&format!("{name}-reference.safetensors"))).unwrap();
        let stored = SafeTensors::deserialize(&stored).unwrap();

        let plan = SoupPlan::new(&soup, &config).unwrap();
        let merger = Merger::new(plan.clone(), Some(Dtype::F32)).unwrap();
        let mixed = mixed_decoder(&plan, config.clone()).unwrap();
        let mut seen = 0;
        for key in stored.names() {
            let Some((what, tensor)) = key.split_once('.') else { panic!("{key}") };
            if what != "logits" {
                let c = coefficients(&soup, &document, what);
                let merged = merger.tensor(tensor, &c).unwrap().to_f32();
                for (got, want) in merged.iter().zip(values(&stored, key)) {
                    assert!((got - want).abs() <= 2e-6, "{name} {key}: {got}, expected {want}");
                }
                continue;
            }
            if tensor == "base" && soup.sft.is_some() {
                continue; // no coefficients give it: θ_sft is part of every merge
            }
            let c = coefficients(&soup, &document, tensor);
            let want = values(&stored, key);
            let fused = Decoder::load(config.clone(), |name| {
                merger.tensor(name, &c).map(Parameter::<HostTensor>::merged)
            })
            .unwrap();
            assert_same(
                &format!("{name} {key} fused"),
                &logits(&fused, None, &[(&tokens, &c)]),
                &want,
            );
            let got = logits(&mixed, Some(&plan), &[(&tokens, &c)]);
            assert_same(&format!("{name} {key} mixed"), &got, &want);
            seen += 1;
        }
        assert!(seen >= 7, "{name}: four cases and three models at least, got {seen}");
    }
}
