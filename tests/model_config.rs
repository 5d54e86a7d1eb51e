//! What a `config.json` becomes, and what is said of one that cannot be served.

use ladle::model::config::{ModelConfig, QkNorm};
use serde_json::{Value, json};

fn llama() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 3, "num_attention_heads": 8, "vocab_size": 100,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "eos_token_id": 2,
    })
}

fn with(mut config: Value, changes: Value) -> Value {
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn read(config: Value) -> ModelConfig {
    ModelConfig::from_json(&config).unwrap()
}

#[test]
fn absent_keys_take_the_defaults_of_transformers() {
    let config = read(llama());
    assert_eq!((config.kv_heads, config.head_dim), (8, 8));
    assert_eq!((config.tied, config.qkv_bias, config.mlp_bias), (false, false, false));
    assert_eq!(config.rope.inv_freq[1], 1.0 / 10_000f32.powf(0.25));
    assert_eq!(config.windows, [None; 3]);
    assert_eq!(config.eos, [2]);
    let config = read(with(llama(), json!({"eos_token_id": null, "num_key_value_heads": null})));
    assert_eq!((config.eos.as_slice(), config.kv_heads), ([].as_slice(), 8));
    let config = read(with(llama(), json!({"eos_token_id": [3, 7]})));
    assert_eq!(config.eos, [3, 7]);
}

#[test]
fn rotary_constants_are_the_same_in_the_spelling_of_transformers_4_and_5() {
    let scaling = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    });
    let four = with(llama(), json!({"rope_theta": 500000.0, "rope_scaling": scaling}));
    let parameters = with(scaling, json!({"rope_theta": 500000.0}));
    let five = with(llama(), json!({"rope_parameters": parameters}));
    assert_eq!(read(four.clone()).rope, read(five).rope);
    assert_ne!(read(four).rope, read(with(llama(), json!({"rope_theta": 500000.0}))).rope);
    // The oldest spelling of the type.
    let old = read(with(llama(), json!({"rope_scaling": {"type": "linear", "factor": 4.0}})));
    let plain = read(llama());
    assert_eq!(old.rope.inv_freq[0] * 4.0, plain.rope.inv_freq[0]);
}

/// The frequencies that transformers 5.24 computes (`LlamaRotaryEmbedding`, head size 8, θ 10000):
/// the key beside the section wins over the one inside.
#[test]
fn the_original_context_beside_the_scaling_wins_over_the_one_inside() {
    const OF_64: [f32; 4] = [1.0, 0.013_042_256, 0.00125, 0.000_125];
    const OF_16: [f32; 4] = [0.576_056_36, 0.0125, 0.00125, 0.000_125];
    let scaling = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    });
    let inside =
        |tokens: usize| with(scaling.clone(), json!({"original_max_position_embeddings": tokens}));
    let beside = json!({"original_max_position_embeddings": 16});
    let older = |section: Value| json!({"rope_scaling": section});
    let newer =
        |section: Value| json!({"rope_parameters": with(section, json!({"rope_theta": 1e4}))});
    for (changes, expected) in [
        (older(inside(64)), OF_64),
        (older(inside(16)), OF_16),
        (with(older(inside(64)), beside.clone()), OF_16),
        (with(older(scaling.clone()), beside.clone()), OF_16),
        (with(newer(inside(64)), beside.clone()), OF_16),
        (with(newer(scaling.clone()), beside.clone()), OF_16),
        (with(older(scaling.clone()), json!({"max_position_embeddings": 64})), OF_64),
    ] {
        let got = read(with(llama(), changes.clone())).rope.inv_freq;
        let close = |(got, expected): (&f32, f32)| (got - expected).abs() <= 1e-6 * expected;
        assert!(got.len() == 4 && got.iter().zip(expected).all(close), "{changes}: {got:?}");
    }
    // Other kinds of scaling do not read it.
    let plain = read(llama()).rope;
    assert_eq!(read(with(llama(), beside)).rope, plain);
}

/// `ROPE_INIT_FUNCTIONS["yarn"]` of transformers 5.24.
#[test]
fn yarn_stretches_slow_pairs_and_scales_all() {
    let yarn = json!({
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
    });
    let more = json!({
        "truncate": false, "mscale": 0.7, "mscale_all_dim": 1.2, "beta_fast": 8, "beta_slow": 2,
    });
    for (section, expected, scale) in [
        (yarn.clone(), [1.0, 0.0625, 0.0025, 0.00025], 1.138_629_4),
        (with(yarn.clone(), more), [1.0, 0.025, 0.0025, 0.00025], 0.940_571_5),
        (with(yarn, json!({"attention_factor": 1.5})), [1.0, 0.0625, 0.0025, 0.00025], 1.5),
    ] {
        let got = read(with(llama(), json!({"rope_scaling": section.clone()}))).rope;
        let pairs = got.inv_freq.iter().zip(expected);
        let close = |(got, expected): (&f32, f32)| (got - expected).abs() <= 1e-6 * expected;
        assert!(got.inv_freq.len() == 4 && { pairs }.all(close), "{section}: {got:?}");
        assert!((got.scale - scale).abs() < 1e-6, "{section}: {}", got.scale);
    }
}

#[test]
fn windows_follow_each_family_s_keys() {
    let mistral = with(llama(), json!({"model_type": "mistral", "num_key_value_heads": 4}));
    let windows = |changes| read(with(mistral.clone(), changes)).windows;
    assert_eq!(windows(json!({})), [Some(4096); 3]);
    assert_eq!(windows(json!({"sliding_window": null})), [None; 3]);
    assert_eq!(windows(json!({"sliding_window": 32})), [Some(32); 3]);
    let qwen = with(mistral.clone(), json!({"model_type": "qwen2", "sliding_window": 16}));
    let windows = |changes| read(with(qwen.clone(), changes)).windows;
    assert_eq!(windows(json!({})), [None; 3]);
    let on = json!({"use_sliding_window": true, "max_window_layers": 2});
    assert_eq!(windows(on), [None, None, Some(16)]);
    let types = ["sliding_attention", "full_attention", "sliding_attention"];
    let on = json!({"use_sliding_window": true, "layer_types": types});
    assert_eq!(windows(on), [Some(16), None, Some(16)]);
}

/// `Phi3RotaryEmbedding` of transformers 5.24 (head size 8, θ 10000), which takes other factors for
/// sequences longer than the original context.
#[test]
fn longrope_is_served_within_the_original_context() {
    let phi3 = |changes| read(with(with(llama(), json!({"model_type": "phi3"})), changes));
    let scaling = json!({
        "type": "su", "short_factor": [1.0, 1.5, 2.0, 4.0], "long_factor": [1.0, 3.0, 5.0, 9.0],
    });
    let scaled = json!({"rope_scaling": scaling, "original_max_position_embeddings": 64});
    let config = phi3(scaled.clone());
    let expected = [1.0, 0.066_666_67, 0.005, 0.000_25];
    let close = |(got, expected): (&f32, f32)| (got - expected).abs() <= 1e-6 * expected;
    assert!(config.rope.inv_freq.iter().zip(expected).all(close), "{:?}", config.rope);
    assert!((config.rope.scale - 1.154_700_5).abs() < 1e-6, "{}", config.rope.scale);
    assert_eq!((config.max_positions, config.rope.head_dim), (64, 8));
    // One set of factors for every length.
    let same = with(scaling, json!({"long_factor": [1.0, 1.5, 2.0, 4.0]}));
    assert_eq!(phi3(with(scaled, json!({"rope_scaling": same}))).max_positions, 256);
    let part = phi3(json!({"partial_rotary_factor": 0.5}));
    assert_eq!((part.rope.inv_freq, part.rope.head_dim), (vec![1.0, 0.01], 8));
}

#[test]
fn mixtures_have_experts_in_the_layers_that_transformers_gives_them() {
    let qwen = |changes| {
        let moe = json!({
            "model_type": "qwen3_moe", "num_key_value_heads": 8, "num_experts": 16,
            "moe_intermediate_size": 24,
        });
        read(with(with(llama(), moe), changes)).experts.unwrap()
    };
    let experts = qwen(json!({"decoder_sparse_step": 2, "mlp_only_layers": [7]}));
    assert_eq!((experts.layers.as_slice(), experts.active), ([false, true, false].as_slice(), 8));
    assert!(!experts.normalised && qwen(json!({"norm_topk_prob": true})).normalised);
    assert_eq!(qwen(json!({"mlp_only_layers": [1]})).layers, [true, false, true]);
    let mixtral =
        json!({"model_type": "mixtral", "num_key_value_heads": 8, "num_local_experts": 4});
    let mixtral = read(with(llama(), mixtral));
    let shapes: std::collections::HashMap<_, _> = mixtral.tensors().into_iter().collect();
    assert_eq!(shapes["model.layers.2.block_sparse_moe.experts.3.w2.weight"], [64, 128]);
    assert_eq!(shapes["model.layers.0.block_sparse_moe.gate.weight"], [4, 64]);
    assert!(!shapes.contains_key("model.layers.0.mlp.gate_proj.weight"));
}

#[test]
fn gemma_2_has_its_caps_unless_they_are_null() {
    let gemma = |changes| {
        let gemma2 =
            json!({"model_type": "gemma2", "num_key_value_heads": 8, "sliding_window": 16});
        read(with(with(llama(), gemma2), changes))
    };
    let config = gemma(json!({}));
    assert_eq!((config.caps.scores, config.caps.logits), (Some(50.0), Some(30.0)));
    assert_eq!(config.windows, [Some(16), None, Some(16)]);
    let config = gemma(json!({"attn_logit_softcapping": null, "final_logit_softcapping": 7.5}));
    assert_eq!((config.caps.scores, config.caps.logits), (None, Some(7.5)));
}

#[test]
fn the_difference_of_two_models_is_told_by_key() {
    let mistral = with(llama(), json!({"model_type": "mistral", "num_key_value_heads": 4}));
    let differs = |a: Value, b: Value| {
        let told = read(with(mistral.clone(), a)).difference(&read(with(mistral.clone(), b)));
        told.map(|(key, expected, got)| format!("{key}: {expected}, {got}"))
    };
    assert_eq!(differs(json!({}), json!({"sliding_window": 4096, "rope_theta": 1e4})), None);
    assert_eq!(differs(json!({}), json!({"eos_token_id": 5, "max_position_embeddings": 9})), None);
    let told = differs(json!({}), json!({"sliding_window": null})).unwrap();
    assert_eq!(told, "sliding_window: 4096, none");
    let told = differs(json!({"rms_norm_eps": null}), json!({})).unwrap();
    assert_eq!(told, "rms_norm_eps: 1e-6, 1e-5");
    let scaled = json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0}});
    let granite = |factor| json!({"model_type": "granite", "residual_multiplier": factor});
    assert!(differs(granite(0.5), granite(0.25)).unwrap().contains("residual_multiplier"));
    assert!(differs(json!({}), scaled).unwrap().contains("rope_scaling"));
}

#[test]
fn families_have_the_tensors_that_transformers_gives_them() {
    let qwen2 = read(with(llama(), json!({"model_type": "qwen2", "num_key_value_heads": 2})));
    assert!(qwen2.qkv_bias && !qwen2.output_bias && qwen2.qk_norm == QkNorm::None);
    let qwen3 = read(with(llama(), json!({"model_type": "qwen3", "num_key_value_heads": 2})));
    assert!(!qwen3.qkv_bias && qwen3.qk_norm == QkNorm::Heads);
    assert_eq!(qwen3.head_dim, 128);
    let shapes: std::collections::HashMap<_, _> = qwen3.tensors().into_iter().collect();
    assert_eq!(shapes["model.layers.0.self_attn.q_proj.weight"], [8 * 128, 64]);
    assert_eq!(shapes["model.layers.2.self_attn.k_norm.weight"], [128]);
    let smollm3 = json!({"model_type": "smollm3", "num_key_value_heads": 2});
    let smollm3 = read(with(with(llama(), smollm3), json!({"no_rope_layer_interval": 2})));
    assert_eq!((smollm3.rotary.as_slice(), smollm3.tied), ([true, false, true].as_slice(), true));
    let olmo2 = read(with(llama(), json!({"model_type": "olmo2", "num_key_value_heads": 2})));
    let shapes: std::collections::HashMap<_, _> = olmo2.tensors().into_iter().collect();
    assert_eq!(shapes["model.layers.1.self_attn.k_norm.weight"], [16]);
    assert!(shapes.contains_key("model.layers.1.post_feedforward_layernorm.weight"));
    assert!(!shapes.contains_key("model.layers.1.input_layernorm.weight"));
    let biased = read(with(llama(), json!({"attention_bias": true, "mlp_bias": true})));
    assert!(biased.qkv_bias && biased.output_bias && biased.mlp_bias);
}

#[test]
fn what_cannot_be_served_is_refused_by_key_value_and_remedy() {
    for (changes, expected) in [
        (
            json!({"model_type": "gemma3"}),
            "config.json: model_type: is \"gemma3\", which is not served: the nearest served is \
             gemma3_text, which lacks images; must be one of llama, mistral, mixtral, qwen2, qwen3, \
             qwen3_moe, smollm3, olmo2, olmo3, granite, phi3, gemma, gemma2, gemma3_text, t5",
        ),
        (
            json!({"model_type": "brand_new"}),
            "config.json: model_type: is \"brand_new\", which is not served; must be one of llama, \
             mistral, mixtral, qwen2, qwen3, qwen3_moe, smollm3, olmo2, olmo3, granite, phi3, gemma, \
             gemma2, gemma3_text, t5",
        ),
        (
            json!({"num_experts": 8}),
            "config.json: num_experts: this family is served without experts; must be null",
        ),
        (
            json!({"model_type": "mixtral", "num_key_value_heads": 8}),
            "config.json: num_local_experts: is missing, must be an integer to 4096",
        ),
        (
            json!({
                "model_type": "mixtral", "num_key_value_heads": 8, "num_local_experts": 4,
                "num_experts_per_tok": 5,
            }),
            "config.json: num_experts_per_tok: is 5, must be at most num_local_experts = 4",
        ),
        (
            json!({
                "model_type": "qwen3_moe", "num_key_value_heads": 8, "num_experts": 8,
                "moe_intermediate_size": 8, "mlp_only_layers": [0, "last"],
            }),
            "config.json: mlp_only_layers: is [0,\"last\"], must be a list of layers",
        ),
        (
            json!({
                "model_type": "qwen3_moe", "num_key_value_heads": 8, "num_experts": 8,
                "moe_intermediate_size": 8, "use_sliding_window": true,
            }),
            "config.json: use_sliding_window: is true, must be false: this family has no windows",
        ),
        (
            json!({"model_type": "smollm3", "num_key_value_heads": 2, "no_rope_layers": [1, 0]}),
            "config.json: no_rope_layers: must be a list of num_hidden_layers = 3 numbers, 0 or 1",
        ),
        (
            json!({"model_type": "smollm3", "num_key_value_heads": 2, "no_rope_layers": [1, 2, 1]}),
            "config.json: no_rope_layers[1]: is 2, must be 0 or 1",
        ),
        (
            json!({"model_type": "granite", "logits_scaling": 0}),
            "config.json: logits_scaling: is 0, must be a number above 0",
        ),
        (
            json!({"hidden_size": null}),
            "config.json: hidden_size: is missing, must be an integer to 1048576",
        ),
        (
            json!({"hidden_size": -64}),
            "config.json: hidden_size: is -64, must be an integer to 1048576",
        ),
        (
            json!({"vocab_size": 0}),
            "config.json: vocab_size: is 0, must be an integer from 1 to 16777216",
        ),
        (
            json!({"intermediate_size": 1e300}),
            "config.json: intermediate_size: is 1e+300, must be an integer to 1048576",
        ),
        (
            json!({"num_key_value_heads": 3}),
            "config.json: num_key_value_heads: is 3, must divide num_attention_heads = 8",
        ),
        (
            json!({"head_dim": 7}),
            "config.json: head_dim: is 7, must be even: rotary pairs halve it",
        ),
        (
            json!({
                "model_type": "mistral", "num_key_value_heads": 8, "sliding_window": 64,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            }),
            "config.json: layer_types[1]: is \"full_attention\", but sliding_window is of all \
             layers here",
        ),
        (
            json!({"rope_theta": 1e300}),
            "config.json: rope_theta, rope_scaling or rope_parameters: the frequency of pair 1 is 0",
        ),
        (
            json!({"rope_scaling": {"rope_type": "linear", "factor": 1e-45}}),
            "config.json: rope_theta, rope_scaling or rope_parameters: the frequency of pair 0 is inf",
        ),
        (
            json!({"is_causal": false}),
            "config.json: is_causal: is not true, but attention to later tokens is not served",
        ),
        (json!({"hidden_act": "gelu"}), "config.json: hidden_act: is \"gelu\", must be \"silu\""),
        (json!({"rms_norm_eps": 0}), "config.json: rms_norm_eps: is 0, must be a number above 0"),
        (
            json!({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}),
            "config.json: rope_scaling.rope_type: is \"longrope\", must be \"default\", \
             \"linear\", \"llama3\" or \"yarn\"",
        ),
        (
            json!({"partial_rotary_factor": 0.5}),
            "config.json: partial_rotary_factor: only whole heads are rotated; must be 1",
        ),
        (
            json!({"model_type": "phi3", "partial_rotary_factor": 0.4}),
            "config.json: partial_rotary_factor: is 0.4, must give an even part of head_dim = 8",
        ),
        (
            json!({"model_type": "phi3", "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
            "config.json: rope_scaling.rope_type: is \"linear\", must be \"default\" or \"longrope\"",
        ),
        (
            json!({"model_type": "phi3", "rope_scaling": {
                "rope_type": "longrope", "short_factor": [1, 1, 1], "long_factor": [1, 1, 1, 2],
            }}),
            "config.json: rope_scaling.short_factor: must be a list of 4 numbers above 0",
        ),
        (
            json!({"attn_logit_softcapping": 50.0}),
            "config.json: attn_logit_softcapping: this family is served without soft caps; must be \
             null",
        ),
        (
            json!({"model_type": "gemma2", "num_key_value_heads": 8, "final_logit_softcapping": -1}),
            "config.json: final_logit_softcapping: is -1, must be a number above 0",
        ),
        (
            json!({"model_type": "olmo3", "rope_theta": 10000.0}),
            "config.json: rope_theta: must be 500000, or stand in rope_parameters for each type of \
             layer",
        ),
        (
            json!({"model_type": "olmo3", "rope_parameters": {"rope_theta": 500000.0}}),
            "config.json: rope_parameters: must have a section for each type of layer",
        ),
        (
            json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 0.5}}),
            "config.json: rope_scaling.beta_fast: is 0.5, must be above beta_slow = 1",
        ),
        (
            json!({"rope_parameters": {"rope_type": "linear"}}),
            "config.json: rope_parameters.factor: is missing, must be a number above 0",
        ),
        (
            json!({"rope_scaling": {"factor": 4.0}}),
            "config.json: rope_scaling.factor: is set without a rope_type that uses it, such as \
             \"linear\"",
        ),
        (
            json!({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}),
            "config.json: rope_parameters.full_attention: frequencies that differ by layer are not \
             served",
        ),
        (
            json!({"eos_token_id": [2, 100]}),
            "config.json: eos_token_id: 100 is not a token id below vocab_size = 100",
        ),
        (
            json!({"tie_word_embeddings": "yes"}),
            "config.json: tie_word_embeddings: is \"yes\", must be true or false",
        ),
        (
            json!({"quantization_config": {"bits": 4}}),
            "config.json: quantization_config: is not null: `ladle import` dequantises GPTQ, AWQ and FP8 \
             checkpoints",
        ),
    ] {
        let error = ModelConfig::from_json(&with(llama(), changes)).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
    assert!(ModelConfig::from_json(&json!([1, 2])).is_err());
}

fn t5() -> Value {
    json!({
        "model_type": "t5", "vocab_size": 100, "d_model": 64, "d_kv": 8, "d_ff": 96, "num_layers": 2,
        "num_decoder_layers": 3, "num_heads": 4, "decoder_start_token_id": 0, "eos_token_id": 1,
        "pad_token_id": 0, "dropout_rate": 0.1, "n_positions": 512, "is_encoder_decoder": true,
    })
}

#[test]
fn t5s_differ_in_gate_head_and_layers() {
    let plain = read(t5());
    let encoder = plain.encoder.expect("an encoder");
    assert_eq!((encoder.layers, plain.layers, encoder.start), (2, 3, 0));
    assert_eq!((encoder.buckets, encoder.max_distance), (32, 128));
    assert_eq!((plain.gated, plain.tied), (false, true));
    assert_eq!((plain.multipliers.logits, plain.multipliers.query), (0.125, 8f32.sqrt()));
    let shapes: std::collections::BTreeMap<_, _> = plain.tensors().into_iter().collect();
    assert_eq!(shapes["decoder.block.2.layer.1.EncDecAttention.q.weight"], [32, 64]);
    assert_eq!(shapes["encoder.block.1.layer.1.DenseReluDense.wi.weight"], [96, 64]);
    assert!(!shapes.contains_key("encoder.block.2.layer.0.layer_norm.weight"));

    // The head of v1.1 as transformers 4 and 5 write it.
    for head in [
        json!({"tie_word_embeddings": false}),
        json!({"tie_word_embeddings": true, "scale_decoder_outputs": false}),
    ] {
        let gated = json!({"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new"});
        let gated = read(with(with(t5(), gated), head));
        assert_eq!((gated.gated, gated.tied, gated.multipliers.logits), (true, false, 1.0));
        let shapes: std::collections::BTreeMap<_, _> = gated.tensors().into_iter().collect();
        assert_eq!(shapes["decoder.block.0.layer.2.DenseReluDense.wi_1.weight"], [96, 64]);
        assert_eq!(shapes["lm_head.weight"], [100, 64]);
    }
}

#[test]
fn settings_that_no_served_t5_has_are_refused_by_name() {
    for (changes, expected) in [
        (
            json!({"feed_forward_proj": "gated-relu"}),
            "feed_forward_proj: is \"gated-relu\", must be one of relu, gated-gelu, gated-gelu_new, \
             gated-silu",
        ),
        (
            json!({"is_gated_act": true}),
            "is_gated_act: is true, must be false beside feed_forward_proj \"relu\"",
        ),
        (
            json!({"dense_act_fn": "gelu"}),
            "dense_act_fn: is \"gelu\", must be \"relu\" beside feed_forward_proj \"relu\"",
        ),
        (
            json!({"scalable_attention": true}),
            "scalable_attention: is true, but no T5 that is served has it",
        ),
        (
            json!({"tie_encoder_decoder": true}),
            "tie_encoder_decoder: is true, but no T5 that is served has it",
        ),
        (json!({"is_encoder_decoder": false}), "is_encoder_decoder: is false, must be true"),
        (json!({"is_decoder": true}), "is_decoder: is true, must be false"),
        (json!({"d_kv": 7}), "d_kv: is 7, must be even"),
        (
            json!({"decoder_start_token_id": null}),
            "decoder_start_token_id: must be the one token id that answers begin after",
        ),
        (
            json!({"decoder_start_token_id": 100}),
            "decoder_start_token_id: 100 is not a token id below vocab_size = 100",
        ),
        (
            json!({"relative_attention_num_buckets": 2}),
            "relative_attention_num_buckets: is 2, must be at least 4",
        ),
        (
            json!({"relative_attention_max_distance": 16}),
            "relative_attention_max_distance: is 16, must be above half of the buckets, 32",
        ),
        (json!({"num_heads": 0}), "num_heads: is 0, must be an integer from 1 to 4096"),
    ] {
        let error = ModelConfig::from_json(&with(t5(), changes)).unwrap_err();
        assert_eq!(error.to_string(), format!("config.json: {expected}"));
    }
}
