//! Mixtures of experts, whose file has one tensor for all experts of a layer.

use ladle::{import::Quantise, kernels::BlockType};

use super::*;

/// The feed-forward layers of the tiny model become mixtures of four experts, stacked as llama.cpp has
/// them.
fn mix(model: &mut Model, architecture: &str, width: u64) {
    for layer in 0..LAYERS {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        let dense = ["ffn_gate", "ffn_up", "ffn_down"].map(name);
        model.tensors.retain(|tensor| !dense.contains(&tensor.name));
        model.add(&name("ffn_gate_inp"), &[4, HIDDEN]);
        model.add(&name("ffn_gate_exps"), &[4, width, HIDDEN]);
        model.add(&name("ffn_up_exps"), &[4, width, HIDDEN]);
        model.add(&name("ffn_down_exps"), &[4, HIDDEN, width]);
    }
    model.rename(architecture);
    model.set(&format!("{architecture}.expert_count"), Value::U32(4));
    model.set(&format!("{architecture}.expert_used_count"), Value::U32(2));
}

/// Turns a tensor into blocks of 8 bits.
fn in_blocks(model: &mut Model, name: &str) {
    let tensor = model.tensor(name);
    let blocks = tensor.data.len() / 128;
    let code = |i: usize| (i * 37 % 251) as u8;
    let block = |b: usize| {
        [0, 0x20 + (b % 8) as u8].into_iter().chain((0..32).map(move |i| code(b * 32 + i)))
    };
    (tensor.kind, tensor.data) = (8, (0..blocks).flat_map(block).collect());
}

#[test]
fn stacked_experts_become_the_experts_of_a_checkpoint() {
    let bench = Bench::new();
    let norms = |model: &mut Model| {
        for layer in 0..LAYERS {
            model.add(&format!("blk.{layer}.attn_q_norm.weight"), &[16]);
            model.add(&format!("blk.{layer}.attn_k_norm.weight"), &[16]);
        }
        model.set("qwen3moe.expert_feed_forward_length", Value::U32(32));
    };
    for (architecture, width, part, names) in [
        ("llama", 128, "block_sparse_moe", ["w1", "w3", "w2"]),
        ("qwen3moe", 32, "mlp", ["gate_proj", "up_proj", "down_proj"]),
    ] {
        let mut model = Model::tiny();
        mix(&mut model, architecture, width);
        if architecture == "qwen3moe" {
            norms(&mut model);
        }
        in_blocks(&mut model, "blk.1.ffn_up_exps.weight");
        let read = bench.accepts(&model);
        let config = read.config();
        assert_eq!(config["num_experts_per_tok"], 2);
        let (kind, count) = match architecture {
            "llama" => ("mixtral", &config["num_local_experts"]),
            _ => ("qwen3_moe", &config["num_experts"]),
        };
        assert_eq!((config["model_type"].as_str(), count), (Some(kind), &json!(4)));
        let keep = ImportOptions {
            quantise: Some(Quantise::Keep),
            ..ImportOptions::new(bench.models.path().join(architecture))
        };
        let file = bench.write("model.gguf", &model.bytes());
        let kept =
            Checkpoint::open(&import(&file, &keep).expect("is imported").dir).expect("opens");
        for layer in 0..LAYERS {
            let prefix = format!("model.layers.{layer}.{part}");
            for (name, file) in names.iter().zip(["gate", "up", "down"]) {
                let stacked = model.tensor(&format!("blk.{layer}.ffn_{file}_exps.weight")).clone();
                for expert in 0..4 {
                    let name = format!("{prefix}.experts.{expert}.{name}.weight");
                    let tensor = read.get(&name).expect(&name);
                    assert_eq!(
                        tensor.shape(),
                        &stacked.shape[1..].iter().map(|n| *n as usize).collect::<Vec<_>>()
                    );
                    let own =
                        &stacked.data[stacked.data.len() / 4 * expert..][..stacked.data.len() / 4];
                    if stacked.kind == 8 {
                        // The codes of a block follow the two bytes of its scale.
                        let d = half::f16::from_le_bytes([own[0], own[1]]).to_f32();
                        assert_eq!(tensor.to_f32()[5], d * f32::from(own[2 + 5].cast_signed()));
                        let kept = kept.get(&name).expect(&name);
                        assert_eq!(kept.dtype(), Dtype::Quantised(BlockType::Q8_0));
                        assert_eq!(kept.to_f32(), tensor.to_f32());
                    } else {
                        assert_eq!(tensor.bytes(), own, "{name}");
                    }
                }
            }
            let router = read.get(&format!("{prefix}.gate.weight")).expect("a router");
            let stored = model.tensor(&format!("blk.{layer}.ffn_gate_inp.weight"));
            assert_eq!(router.bytes(), stored.data);
        }
        let name = format!("{architecture}.expert_used_count");
        bench.refuses(&[&name], |model| {
            mix(model, architecture, width);
            norms(model);
            model.remove(&name);
        });
        bench.refuses(&["blk.0.ffn_up_exps.weight", "expected [4, "], |changed| {
            changed.tensors.clone_from(&model.tensors);
            changed.metadata.clone_from(&model.metadata);
            changed.tensors.retain(|tensor| tensor.name != "blk.0.ffn_up_exps.weight");
            changed.add("blk.0.ffn_up_exps.weight", &[3, width, HIDDEN]);
        });
    }
    // A dense model of the same architecture says 0 or nothing.
    let config = bench.config(|model| model.set("llama.expert_count", Value::U32(0)));
    assert_eq!(config["model_type"], "llama");
}
