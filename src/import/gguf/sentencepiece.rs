//! SentencePiece vocabularies of GGUF files (Llama 2, Mistral 7B) as the BPE that their published
//! `tokenizer.json` holds: merges in the order of the pieces' scores, bytes for what has no piece.

use std::collections::HashMap;

use serde_json::{Value, json};

/// The merges that a scored vocabulary stands for: every way to cut a piece into two pieces, best
/// score first; of equal scores the longer left part, then the longer right part first. (What
/// transformers derives when it converts such a vocabulary.)
pub fn merges(tokens: &[&str], ids: &HashMap<&str, usize>, scores: &[f32]) -> Vec<Value> {
    let mut found = Vec::new();
    for (token, score) in tokens.iter().zip(scores) {
        let cuts = token.char_indices().skip(1).enumerate().filter_map(|(i, (at, _))| {
            let (left, right) = token.split_at_checked(at)?;
            let order = (*ids.get(left)?, *ids.get(right)?);
            Some((order, (*score, i + 1, right.chars().count()), left, right))
        });
        let start = found.len();
        found.extend(cuts);
        if let Some(own) = found.get_mut(start..) {
            own.sort_by_key(|(order, ..)| *order);
        }
    }
    let better = |a: &(f32, usize, usize), b: &(f32, usize, usize)| {
        b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(b.2.cmp(&a.2))
    };
    found.sort_by(|(_, a, ..), (_, b, ..)| better(a, b));
    found.into_iter().map(|(.., left, right)| json!([left, right])).collect()
}

/// Spaces become `▁`, one of them put before each stretch of text where the model was trained so.
pub fn normalizer(adds_space: bool) -> Value {
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let prepend = adds_space.then(|| json!({"type": "Prepend", "prepend": "▁"}));
    let steps: Vec<Value> = prepend.into_iter().chain([replace]).collect();
    json!({"type": "Sequence", "normalizers": steps})
}

/// The way back: `▁` to spaces, bytes to text, and the first space dropped if one was added.
pub fn decoder(adds_space: bool) -> Value {
    let strip = adds_space.then(|| json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    let steps = [
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    json!({"type": "Sequence", "decoders": steps.into_iter().chain(strip).collect::<Vec<_>>()})
}
