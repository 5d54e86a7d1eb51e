//! T5 against the logits, greedy tokens and texts of transformers and PEFT
//! (tests/reference/make_tiny_t5.py): tied and untied heads, with and without a gate, adapters and full
//! checkpoints.

#[path = "../support/answers.rs"]
mod answers;
mod engine;
mod kernels;
#[path = "../common/soup.rs"]
mod soups;

use ladle::preference::Coefficients;
use serde_json::Value;
use soups::{numbers, reference};

const SOUPS: [&str; 2] = ["soup-t5", "soup-t5-gated"];
const TOLERANCE: f32 = 1e-4;
/// The token that answers begin after.
const START: u32 = 0;

/// What transformers answers a prompt with, by one model.
struct Expected {
    c: Coefficients,
    prompt: Vec<u32>,
    greedy: Vec<u32>,
    /// What `generate` gives: the answer up to its end.
    generated: Vec<u32>,
    text: String,
    /// Number of a row of the greedy answer, and its logits.
    logits: Vec<(usize, Vec<f32>)>,
}

fn ids(value: &Value) -> Vec<u32> {
    numbers(value).into_iter().map(|id| id as u32).collect()
}

fn expected(name: &str) -> Vec<Expected> {
    let (document, tensors) = reference(name);
    let stride = document["stride"].as_u64().unwrap() as usize;
    let all = document["answers"].as_array().unwrap().iter();
    all.map(|answer| {
        let mut backbones = numbers(&answer["coefficients"]);
        let sft = backbones.pop().unwrap();
        let (model, index) =
            (answer["model"].as_str().unwrap(), answer["prompt"].as_u64().unwrap());
        let tensor = &tensors[&format!("logits.{model}.{index}")];
        let values = tensor.to_f32();
        let rows = values.chunks_exact(tensor.shape()[1]).map(<[f32]>::to_vec);
        Expected {
            c: Coefficients { backbones, sft },
            prompt: ids(&document["tokens"][index as usize]),
            greedy: ids(&answer["greedy"]),
            generated: ids(&answer["generate"]),
            text: answer["text"].as_str().unwrap().to_owned(),
            logits: rows.enumerate().map(|(row, logits)| (row * stride, logits)).collect(),
        }
    })
    .collect()
}
