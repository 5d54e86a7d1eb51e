//! Fields that other servers have, and fields that nobody has.

use serde_json::{Value, json};

use crate::{
    ask::{CHAT, COMPLETIONS, GENERATE, answered, base, refused},
    server::{Server, with},
};

/// Fields of OpenAI, vLLM, SGLang, llama.cpp, TGI, mistral.rs and others with values under which
/// they change nothing.
fn neutral() -> Vec<Value> {
    vec![
        json!({"user": "u-1", "metadata": {"team": "x"}, "safety_identifier": "s", "store": false}),
        json!({"service_tier": "auto", "prompt_cache_key": "k", "prompt_cache_retention": "24h"}),
        json!({"prediction": {"type": "content", "content": "x"}, "reasoning_effort": "medium"}),
        json!({"verbosity": "medium", "parallel_tool_calls": true, "tools": [], "tool_choice": "none"}),
        json!({"functions": [], "function_call": "auto", "logit_bias": {}, "modalities": ["text"]}),
        json!({"logit_bias": {"5": 0, "6": 0.0}, "audio": {}, "response_format": {"type": "text"}}),
        json!({"tool_choice": "auto", "parallel_tool_calls": false, "web_search_options": {}}),
        json!({"stop": [], "n": 1.0, "seed": 7, "presence_penalty": 0, "top_p": 1, "min_p": 0.0}),
        json!({"skip_special_tokens": true, "min_tokens": 0, "use_beam_search": false}),
        json!({"length_penalty": 1.0, "early_stopping": false, "stop_token_ids": []}),
        json!({"include_stop_str_in_output": false, "spaces_between_special_tokens": true}),
        json!({"allowed_token_ids": [], "bad_words": [], "add_generation_prompt": true}),
        json!({"continue_final_message": false, "documents": [], "chat_template_kwargs": {}}),
        json!({"guided_choice": [], "guided_regex": "", "guided_decoding_backend": "xgrammar"}),
        json!({"request_id": "r", "session_id": "s", "return_token_ids": false, "cache_salt": ""}),
        json!({"return_tokens_as_token_ids": false, "include_reasoning": true, "vllm_xargs": {}}),
        json!({"thinking_token_budget": -1, "watermarking": false, "stream_interval": 1}),
        json!({"kv_transfer_params": {}, "mm_processor_kwargs": {}, "truncation_side": "left"}),
        json!({"regex": "", "ebnf": "", "stop_regex": [], "no_stop_trim": false, "rid": "1"}),
        json!({"return_hidden_states": false, "separate_reasoning": true, "stream_reasoning": true}),
        json!({"custom_params": {}, "routed_experts_start_len": 0, "return_meta_info": false}),
        json!({"n_predict": -1, "n_keep": 0, "n_discard": 0, "cache_prompt": true, "id_slot": -1}),
        json!({"typical_p": 1.0, "repeat_penalty": 1.0, "repeat_last_n": -1, "tfs_z": 1}),
        json!({"dry_multiplier": 0.0, "dry_base": 1.75, "dry_allowed_length": 2}),
        json!({"dry_penalty_last_n": -1, "dry_sequence_breakers": ["\n"], "xtc_probability": 0}),
        json!({"xtc_threshold": 0.1, "mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1}),
        json!({"dynatemp_range": 0, "dynatemp_exponent": 1.0, "top_n_sigma": -1, "min_keep": 0}),
        json!({"n_probs": 0, "post_sampling_probs": false, "timings_per_token": false}),
        json!({"return_tokens": false, "return_progress": false, "response_fields": []}),
        json!({"samplers": [], "lora": [], "grammar": "", "t_max_predict_ms": -1}),
        json!({"do_sample": true, "watermark": false, "details": false, "top_n_tokens": 0}),
        json!({"decoder_input_details": false, "return_full_text": false, "adapter_id": ""}),
        json!({"keep_alive": "5m", "options": {}, "format": "", "think": false, "images": []}),
        json!({"enable_thinking": false, "adapters": [], "min_length": 0, "num_beams": 1}),
        json!({"no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1, "cache_control": {"type": "ephemeral"}}),
        json!({"stream_options": {"include_usage": true, "include_obfuscation": false}}),
        json!({"stream_options": {"continuous_usage_stats": false}, "best_of": 1, "suffix": ""}),
        json!({"logprobs": false, "timeout": 60, "priority": 0, "repetition_penalty": 1}),
    ]
}

#[test]
fn fields_of_other_servers_are_accepted_where_they_change_nothing() {
    for path in [GENERATE, CHAT, COMPLETIONS] {
        let expected = answered(path, json!({}));
        for fields in neutral() {
            assert_eq!(answered(path, fields.clone()), expected, "{path} {fields}");
        }
    }
    let expected = answered(CHAT, json!({}));
    let fields =
        json!({"logprobs": false, "top_logprobs": 0, "echo": false, "max_completion_tokens": 4});
    assert_eq!(answered(CHAT, fields), expected);
    for more in [
        json!({"id": "msg_1", "name": "Ann", "cache_control": {"type": "ephemeral"}}),
        json!({"tool_calls": [], "annotations": [], "refusal": "", "images": [], "metadata": {"a": 1}}),
        json!({"prefix": false, "partial": false, "reasoning_content": "", "type": "message"}),
        json!({"content": [{"type": "text", "text": "Hello", "cache_control": {"type": "ephemeral"}}]}),
    ] {
        let message = with(json!({"role": "user", "content": "Hello"}), more);
        assert_eq!(answered(CHAT, json!({"messages": [message]})), expected);
    }
}

#[test]
fn a_field_of_other_servers_that_asks_for_what_does_not_happen_is_refused_by_name() {
    for (name, value) in [
        ("skip_special_tokens", json!(false)),
        ("min_tokens", json!(5)),
        ("use_beam_search", json!(true)),
        ("best_of", json!(3)),
        ("stop_token_ids", json!([5])),
        ("include_stop_str_in_output", json!(true)),
        ("allowed_token_ids", json!([1])),
        ("bad_words", json!(["x"])),
        ("regex", json!("a+")),
        ("grammar", json!("root ::= \"a\"")),
        ("json_schema", json!({})),
        ("tools", json!([{"type": "function", "function": {"name": "f"}}])),
        ("modalities", json!(["text", "audio"])),
        ("verbosity", json!("low")),
        ("reasoning_effort", json!(true)),
        ("typical_p", json!(0.9)),
        ("mirostat", json!(2)),
        ("dry_multiplier", json!(0.8)),
        ("xtc_probability", json!(0.5)),
        ("repeat_penalty", json!(1.1)),
        ("samplers", json!(["top_k"])),
        ("n_predict", json!(16)),
        ("max_new_tokens", json!(16)),
        ("do_sample", json!(false)),
        ("truncate_prompt_tokens", json!(10)),
        ("prompt_logprobs", json!(1)),
        ("return_token_ids", json!(true)),
        ("extra_key", json!("secret")),
        ("lora", json!([{"id": 0, "scale": 1}])),
        ("chat_template", json!("{{ messages }}")),
        ("stream_interval", json!(4)),
        ("num_beams", json!(true)),
    ] {
        for path in [GENERATE, CHAT, COMPLETIONS] {
            let message = refused(path, json!({name: value}), "unsupported", name);
            assert!(message.contains(name) && message.len() < 600, "{message}");
        }
    }
    for path in [GENERATE, CHAT] {
        refused(path, json!({"echo": true}), "unsupported", "echo");
    }
    for path in [GENERATE, COMPLETIONS] {
        refused(path, json!({"tool_choice": "required"}), "unsupported", "tool_choice");
    }
    refused(
        COMPLETIONS,
        json!({"continue_final_message": true}),
        "unsupported",
        "continue_final_message",
    );
    refused(
        GENERATE,
        json!({"continue_final_message": true}),
        "invalid_value",
        "continue_final_message",
    );
    refused(CHAT, json!({"tool_choice": "required"}), "invalid_value", "tool_choice");
    for (more, param) in [
        (json!({"tool_calls": [{"id": "1"}]}), "messages[0].tool_calls"),
        (json!({"role": "tool"}), "messages[0].role"),
        (json!({"prefix": true}), "messages[0].prefix"),
        (json!({"images": ["aGk="]}), "messages[0].images"),
    ] {
        let message = with(json!({"role": "user", "content": "Hello"}), more);
        refused(CHAT, json!({"messages": [message]}), "unsupported", param);
    }
}

#[test]
fn a_misspelt_field_of_ladle_is_an_error_that_suggests_the_right_one() {
    for (wrong, right) in [
        ("preferance", "preference"),
        ("prefrence", "preference"),
        ("Preference", "preference"),
        ("alhpa", "alpha"),
        ("temprature", "temperature"),
        ("maxTokens", "max_tokens"),
        ("max_token", "max_tokens"),
        ("topP", "top_p"),
        ("top-k", "top_k"),
        ("repetition_penality", "repetition_penalty"),
        ("ignore_eso", "ignore_eos"),
        ("combin", "combine"),
        ("steam", "stream"),
    ] {
        for path in [GENERATE, CHAT, COMPLETIONS] {
            let message = refused(path, json!({wrong: 1}), "unknown_field", wrong);
            let suggestion = format!("did you mean {right:?}?");
            assert!(message.contains(&suggestion), "{path} {wrong}: {message}");
        }
    }
    let message = refused(GENERATE, json!({"colour": 1}), "unknown_field", "colour");
    assert!(!message.contains("did you mean"), "{message}");
    let misspelt = json!({"messages": [{"role": "user", "contnet": "x", "content": "x"}]});
    let message = refused(CHAT, misspelt, "unknown_field", "messages[0].contnet");
    assert!(message.contains("did you mean \"messages[0].content\"?"), "{message}");
    let misspelt = json!({"stream_options": {"include_usge": true}});
    refused(CHAT, misspelt, "unknown_field", "stream_options.include_usge");
    // Comparing costs no more for a name of megabytes.
    let long = "x".repeat(1 << 20);
    let reply = Server::shared().post(GENERATE, with(base(GENERATE), json!({long: 1})));
    assert_eq!((reply.status, reply.error().0), (400, "unknown_field"));
}
