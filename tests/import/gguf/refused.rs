//! GGUF files that are refused by name.

use super::*;

#[test]
fn missing_surplus_and_misshapen_tensors_are_refused_by_name() {
    let bench = Bench::new();
    let names: Vec<String> = Model::tiny().tensors.iter().map(|t| t.name.clone()).collect();
    for name in &names {
        bench.refuses(&[name, "missing"], |model| model.tensors.retain(|t| t.name != *name));
    }
    bench.refuses(&["blk.1.", "missing"], |model| {
        model.tensors.retain(|tensor| !tensor.name.starts_with("blk.1."));
    });
    for surplus in [
        "blk.2.attn_norm.weight",
        "blk.0.attn_q_norm.weight",
        "blk.0.ffn_gate_inp.weight",
        "rope_factors_long.weight",
        "token_types.weight",
        "v.blk.0.attn_q.weight",
        "blk.00.attn_norm.weight",
    ] {
        bench.refuses(&[surplus, "2 layers"], |model| model.add(surplus, &[HIDDEN]));
    }
    bench.refuses(&["blk.1.attn_q.bias", "missing"], |model| {
        for part in ["attn_q", "attn_k", "attn_v", "attn_output"] {
            let rows = if ["attn_k", "attn_v"].contains(&part) { 32 } else { HIDDEN };
            model.add(&format!("blk.0.{part}.bias"), &[rows]);
        }
    });
    for (name, shape) in [
        ("blk.0.attn_q.weight", &[32, HIDDEN][..]),
        ("blk.1.attn_k.weight", &[HIDDEN, 32]),
        ("blk.0.ffn_down.weight", &[128, HIDDEN]),
        ("blk.0.attn_norm.weight", &[1, HIDDEN]),
        ("output_norm.weight", &[32]),
        ("token_embd.weight", &[263, 32]),
    ] {
        bench.refuses(&[name, "expected ["], |model| {
            model.tensors.retain(|tensor| tensor.name != name);
            model.add(name, shape);
        });
    }
    // Fewer rows than tokens.
    bench.refuses(&["263 tokens", "262 embeddings"], |model| {
        model.tensors.retain(|tensor| tensor.name != "token_embd.weight");
        model.add("token_embd.weight", &[262, HIDDEN]);
    });
}

#[test]
fn ids_outside_the_vocabulary_are_refused_at_import() {
    let bench = Bench::new();
    for name in ["bos", "eos", "padding", "unknown", "eot", "eom", "fim_pre", "mask", "seperator"] {
        let key = format!("tokenizer.ggml.{name}_token_id");
        for id in [Value::U32(263), Value::U32(u32::MAX), Value::U64(1 << 40)] {
            bench.refuses(&[&key, "below 263"], |model| model.set(&key, id));
        }
        bench.refuses(&[&key, "a whole number", "-1"], |model| model.set(&key, Value::I32(-1)));
        bench.refuses(&[&key, "a string"], |model| model.set(&key, "262"));
    }
    let config = bench.config(|model| model.set("tokenizer.ggml.eot_token_id", Value::U32(262)));
    assert_eq!(config["eos_token_id"], json!([261, 262]));
    assert_eq!((&config["bos_token_id"], &config["pad_token_id"]), (&json!(260), &json!(262)));
}

#[test]
fn tokenizers_that_contradict_themselves_are_refused() {
    let bench = Bench::new();
    let tokens = "tokenizer.ggml.tokens";
    bench.refuses(&["tokens 5 and 256", "\"ą\""], |model| {
        model.texts(tokens)[256] = model.texts(tokens)[5].clone();
    });
    bench.refuses(&["tokens 260 and 261", "<|begin|>"], |model| {
        model.texts(tokens)[261] = "<|begin|>".to_owned();
    });
    for key in ["model", "tokens", "token_type", "merges", "pre"] {
        let key = format!("tokenizer.ggml.{key}");
        bench.refuses(&[&key], |model| model.remove(&key));
    }
    let types = "tokenizer.ggml.token_type";
    for wrong in [vec![1; 262], vec![1; 264], vec![]] {
        let length = wrong.len().to_string();
        bench.refuses(&[types, "263 values", &length], |model| {
            model.set(types, Value::I32s(wrong));
        });
    }
    for kind in [0, 7, -1] {
        bench.refuses(&[types, "1 to 6"], |model| {
            model.set(types, Value::I32s(vec![kind; 263]));
        });
    }
    let merges = "tokenizer.ggml.merges";
    for (merge, unknown) in [("t x", "tx"), ("q the", "qthe"), ("zz the", "zz"), ("th zz", "zz")] {
        bench.refuses(&["merge 4", &format!("{unknown:?} is not a token")], |model| {
            model.texts(merges).push(merge.to_owned());
        });
    }
    bench.refuses(&[merges, "pairs of tokens"], |model| {
        model.texts(merges).push("joined".to_owned());
    });
    bench.refuses(&["tokenizer.ggml.pre", "martian", "smollm"], |model| {
        model.set("tokenizer.ggml.pre", "martian");
    });
    bench.refuses(&["tokenizer.ggml.model", "bert", "gpt2, llama"], |model| {
        model.set("tokenizer.ggml.model", "bert");
    });
    bench.refuses(&["tokenizer.ggml.bos_token_id"], |model| {
        model.remove("tokenizer.ggml.bos_token_id");
        model.set("tokenizer.ggml.add_bos_token", Value::Bool(true));
    });
    bench.refuses(&["tokenizer.chat_template", "not UTF-8"], |model| {
        model.set("tokenizer.chat_template", Value::Bytes(vec![0xff, 0xfe]));
    });
    bench.refuses(&["template"], |model| {
        model.set("tokenizer.chat_template", "{% for m in messages %}{{ m.content }}");
    });
}

#[test]
fn sentencepiece_vocabularies_need_a_score_for_every_token() {
    let bench = Bench::new();
    let refused = |parts: &[&str], change: &dyn Fn(&mut Model)| {
        let mut model = Model::sentencepiece();
        change(&mut model);
        bench.refuses_bytes(&model.bytes(), parts);
    };
    let scores = "tokenizer.ggml.scores";
    let model = Model::sentencepiece();
    bench.accepts(&model);
    refused(&[scores, "nothing"], &|model| model.remove(scores));
    refused(&[scores, "263 values", "3"], &|model| model.set(scores, Value::F32s(vec![0.0; 3])));
    refused(&[scores], &|model| model.set(scores, Value::F32s(vec![f32::NAN; 263])));
    refused(&["tokens 260 and 262"], &|model| {
        model.texts("tokenizer.ggml.tokens")[262] = "a".to_owned();
    });

    // llama.cpp's ids where the file names none: 0, 1 and 2 (llama-vocab.cpp).
    let mut model = Model::sentencepiece();
    model.remove("tokenizer.ggml.bos_token_id");
    model.remove("tokenizer.ggml.eos_token_id");
    let config = bench.accepts(&model).config().clone();
    assert_eq!((&config["bos_token_id"], &config["eos_token_id"]), (&json!(1), &json!(2)));
}

/// Names of ggml's types by their ids (ggml.h).
#[test]
fn blocks_of_unsupported_types_are_named_as_ggml_names_them() {
    let bench = Bench::new();
    for (id, name) in [
        (9, "Q8_1"),
        (15, "Q8_K"),
        (16, "IQ2_XXS"),
        (19, "IQ1_S"),
        (21, "IQ3_S"),
        (26, "I32"),
        (28, "F64"),
        (34, "TQ1_0"),
        (39, "MXFP4"),
        (99, "type 99"),
        (u32::MAX, "type 4294967295"),
    ] {
        bench.refuses(&["blk.1.ffn_up.weight", name, "Q4_K"], |model| {
            model.tensor("blk.1.ffn_up.weight").kind = id;
        });
    }
}

#[test]
fn headers_that_lie_are_refused_before_anything_is_read() {
    let bench = Bench::new();
    let alignment = "general.alignment";
    for wrong in [Value::U32(0), Value::U32(3), Value::U32(48), "32".into(), Value::I32(-32)] {
        bench.refuses(&[alignment, "a power of two"], |model| model.set(alignment, wrong));
    }
    bench.refuses(&["offset", "multiple of 4096"], |model| model.set(alignment, Value::U32(4096)));
    let huge = Value::U64(1 << 63);
    bench.refuses(&["remaining"], |model| {
        model.tensors.truncate(1);
        model.set(alignment, huge);
    });
    bench.refuses(&["general.name", "twice"], |model| {
        model.metadata.push(("general.name".to_owned(), "again".into()));
    });
    bench.refuses(&["output_norm.weight", "twice"], |model| {
        model.add("output_norm.weight", &[HIDDEN]);
    });
    bench.refuses(&["blk.0.attn_norm.weight", "overlaps", "token_embd.weight"], |model| {
        model.tensor("blk.0.attn_norm.weight").offset = Some(64);
    });
    bench.refuses(&["output_norm.weight", "offset", "multiple of 32"], |model| {
        let end = 263 * HIDDEN * 4;
        model.tensor("output_norm.weight").offset = Some(end + 4);
    });
    for offset in [1 << 40, u64::MAX - 31] {
        bench.refuses(&["output_norm.weight", "remaining"], |model| {
            model.tensor("output_norm.weight").offset = Some(offset);
        });
    }
    for shape in [vec![u64::MAX, u64::MAX], vec![1 << 62, 1 << 62], vec![1 << 63, 2]] {
        bench.refuses(&["output_norm.weight"], |model| {
            model.tensor("output_norm.weight").shape = shape;
        });
    }
    bench.refuses(&["output_norm.weight", "a dimension is 0"], |model| {
        model.tensor("output_norm.weight").shape = vec![0, 64];
    });
    for dimensions in [0, 5] {
        bench.refuses(&["output_norm.weight", "dimensions, expected 1 to 4"], |model| {
            model.tensor("output_norm.weight").shape = vec![1; dimensions];
        });
    }
    bench.refuses(&["blk.0.attn_q.weight", "whole blocks of 256 (Q4_K)"], |model| {
        model.tensor("blk.0.attn_q.weight").kind = 12;
    });
    let length = |n: u64| Value::Raw(8, n.to_le_bytes().to_vec());
    for long in [1 << 30, u64::MAX] {
        bench.refuses(&["general.name", "remaining"], |model| {
            model.set("general.name", length(long));
        });
    }
    for (kind, count) in [(8u32, u64::MAX), (4, 1 << 62), (8, 1 << 21), (9, 1), (13, 1)] {
        let bytes = [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat();
        bench.refuses(&["general.tags"], |model| model.set("general.tags", Value::Raw(9, bytes)));
    }
    bench.refuses(&["general.x", "unknown type 77"], |model| {
        model.set("general.x", Value::Raw(77, vec![0; 8]));
    });
    bench.refuses(&["general.x", "2 is not a boolean"], |model| {
        model.set("general.x", Value::Raw(7, vec![2]));
    });

    let whole = Model::tiny().bytes();
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = whole.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    bench.refuses_bytes(b"GGU", &["magic", "remaining"]);
    bench.refuses_bytes(&with(0, b"GGML"), &["magic"]);
    bench.refuses_bytes(&with(4, &1u32.to_le_bytes()), &["version 1"]);
    bench.refuses_bytes(&with(4, &4u32.to_le_bytes()), &["version 4"]);
    bench.refuses_bytes(&with(4, &3u32.to_be_bytes()), &["big-endian"]);
    for at in [8, 16] {
        for count in [u64::MAX, 1 << 40, 1000] {
            bench.refuses_bytes(&with(at, &count.to_le_bytes()), &[]);
        }
    }
    bench.refuses_bytes(&whole[..whole.len() - 1], &["ffn_down", "remaining"]);
}

/// Bits of the header flipped at random: refused, or read as another model; never a panic.
#[test]
fn a_header_with_any_bit_flipped_is_read_or_refused() {
    let bench = Bench::new();
    let whole = Model::tiny().bytes();
    let tokens = whole.windows(6).position(|w| w == b"<|pad|").expect("the last token");
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(20261128);
    let mut refused = 0;
    for _ in 0..400 {
        let mut bytes = whole.clone();
        // Not in the token list, whose texts may be any.
        let at = match random.random_bool(0.5) {
            true => random.random_range(0..600),
            false => random.random_range(tokens..tokens + 3000),
        };
        bytes[at] ^= 1 << random.random_range(0..8);
        refused += usize::from(bench.import(&bench.write("flipped.gguf", &bytes)).is_err());
    }
    assert!(refused > 200, "{refused} of 400");
}

#[test]
fn settings_that_change_the_result_and_are_not_known_are_refused() {
    let bench = Bench::new();
    for (setting, value) in [
        ("logit_scale", Value::F32(0.5)),
        ("attention.scale", Value::F32(0.2)),
        ("attention.causal", Value::Bool(false)),
        ("attention.clamp_kqv", Value::F32(8.0)),
        ("final_logit_softcapping", Value::F32(30.0)),
        ("rope.scaling.attn_factor", Value::F32(1.2)),
        ("embedding_scale", Value::F32(12.0)),
        ("rope.dimension_count", Value::U32(8)),
        ("attention.value_length", Value::U32(32)),
        ("a.setting.of.tomorrow", Value::U32(1)),
    ] {
        let key = format!("llama.{setting}");
        bench.refuses(&[&key], |model| model.set(&key, value));
    }
    for (setting, value) in [
        ("logit_scale", Value::F32(1.0)),
        ("attention.causal", Value::Bool(true)),
        ("expert_count", Value::U32(0)),
        ("expert_used_count", Value::U32(0)),
        ("rope.dimension_count", Value::U32(16)),
        ("attention.key_length", Value::U32(16)),
        ("rope.scaling.original_context_length", Value::U32(256)),
        ("vocab_size", Value::U32(263)),
        ("attention.sliding_window", Value::U32(256)),
        ("attention.sliding_window", Value::U32(0)),
    ] {
        let config = bench.config(|model| model.set(&format!("llama.{setting}"), value));
        assert_eq!(config["model_type"], "llama", "{setting}");
    }
    for (setting, value) in [
        ("add_sep_token", Value::Bool(true)),
        ("remove_extra_whitespaces", Value::Bool(true)),
        ("a_setting_of_tomorrow", Value::U32(1)),
    ] {
        let key = format!("tokenizer.ggml.{setting}");
        bench.refuses(&[&key], |model| model.set(&key, value));
    }
    // Blocks of another layout.
    let layout = "general.quantization_version";
    bench.refuses(&[layout, "3"], |model| model.set(layout, Value::U32(3)));
    bench.config(|model| model.set(layout, Value::U32(2)));
    bench.refuses(&["qwen2.attention.sliding_window", "none"], |model| {
        model.rename("qwen2");
        model.set("qwen2.attention.sliding_window", Value::U32(64));
    });
    let config = bench.config(|model| {
        model.set("llama.attention.sliding_window", Value::U32(64));
    });
    assert_eq!((&config["model_type"], &config["sliding_window"]), (&json!("mistral"), &json!(64)));
}

#[test]
fn other_architectures_are_named_with_the_nearest_that_is_read() {
    let bench = Bench::new();
    for (name, nearest) in [
        ("qwen2moe", "the nearest is qwen2"),
        ("qwen3next", "the nearest is qwen3"),
        ("llama4", "the nearest is llama"),
        ("gemma4", "the nearest is gemma3"),
        (
            "t5",
            "llama, qwen2, qwen3, qwen3moe, smollm3, granite, olmo2, phi3, gemma, gemma2, gemma3",
        ),
        ("", "llama, qwen2, qwen3, qwen3moe, smollm3, granite, olmo2, phi3, gemma, gemma2, gemma3"),
    ] {
        let quoted = format!("architecture {name:?}");
        bench.refuses(&[&quoted, nearest], |model| model.rename(name));
    }
    bench.refuses(&["general.architecture", "a string", "an unsigned number"], |model| {
        model.set("general.architecture", Value::U32(1));
    });
    for kind in ["adapter", "mmproj", "imatrix"] {
        bench.refuses(&[kind, "supported: model"], |model| model.set("general.type", kind));
    }
}

#[test]
fn values_that_the_storage_type_cannot_hold_are_refused() {
    let bench = Bench::new();
    let mut model = Model::tiny();
    let name = "blk.0.ffn_up.weight";
    model.tensor(name).data[8..12].copy_from_slice(&1e5f32.to_le_bytes());
    bench.accepts(&model);
    let path = bench.write("model.gguf", &model.bytes());
    let options = ImportOptions { dtype: Dtype::F16, ..ImportOptions::new(bench.models.path()) };
    let said = import(&path, &options).expect_err("infinity in f16").to_string();
    let up = "model.layers.0.mlp.up_proj.weight";
    assert!(said.contains(up) && said.contains("100000 at element 2"), "{said}");
    assert!(said.contains("f16") && said.contains("--dtype"), "{said}");
    for wrong in [f32::NAN, f32::INFINITY] {
        model.tensor(name).data[8..12].copy_from_slice(&wrong.to_le_bytes());
        bench.refuses_bytes(&model.bytes(), &[up, "finite", "element 2"]);
    }
}

/// What is refused leaves nothing under the models directory.
#[test]
fn a_refused_import_leaves_nothing() {
    let bench = Bench::new();
    let mut model = Model::tiny();
    model.set("tokenizer.chat_template", "{% if %}");
    let path = bench.write("model.gguf", &model.bytes());
    import(&path, &ImportOptions::new(bench.models.path())).expect_err("a broken template");
    let left = fs::read_dir(bench.models.path()).expect("a directory");
    let left: Vec<_> = left.map(|entry| entry.expect("an entry").file_name()).collect();
    assert_eq!(left, [Path::new(".lock")]);
}
