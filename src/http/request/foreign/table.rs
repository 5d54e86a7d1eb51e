//! The table of fields of other servers. A field that a route has itself is read there and never
//! looked up here.

use super::field::{
    Foreign,
    Neutral::{self, Any, Only},
    Place::{self, Body, Message, Output, Part, Reasoning, StreamOptions, StructuredOutputs, Tool},
};

const NONE: Neutral = Only(&[]);
const FALSE: Neutral = Only(&["false"]);
const TRUE: Neutral = Only(&["true"]);
const ZERO: Neutral = Only(&["0"]);
const ONE: Neutral = Only(&["1"]);
const EMPTY: Neutral = Only(&["\"\"", "[]", "{}"]);

const fn row(
    place: Place,
    names: &'static [&'static str],
    neutral: Neutral,
    reason: &'static str,
) -> Foreign {
    Foreign { place, names, neutral, reason }
}

const CONSTRAINED: &str = "use response_format or structured_outputs";
const WHITESPACE: &str = "at most 40 characters of whitespace stand between two tokens of JSON";
const TOOLS: &str = "tools are called on /v1/chat/completions";
const SAMPLER: &str =
    "there is no such sampler; temperature, top_p, top_k, min_p and the three penalties are";
const TOKENS: &str = "use logit_bias or structured_outputs";
const MODALITY: &str = "this server takes and gives text only";
const TEMPLATE: &str = "conversations go through the model's own template, which opens an answer";
const REPORT: &str = "this is not reported";
const OFF: &str = "that sampler is off";
const CACHE: &str = "the prefix cache cannot be divided or moved by a request";
const ADAPTER: &str = "adapters are chosen by preference";
const LENGTH: &str = "use max_tokens";

pub const TABLE: &[Foreign] = &[
    // About the caller, or about how a server does its work.
    row(
        Body,
        &[
            "user",
            "metadata",
            "safety_identifier",
            "service_tier",
            "prompt_cache_key",
            "prompt_cache_retention",
            "prediction",
            "request_id",
            "rid",
            "session_id",
            "custom_labels",
            "cache_control",
            "cache_prompt",
            "n_cache_reuse",
            "id_slot",
            "keep_alive",
            "sse_ping_interval",
            "routed_dp_rank",
            "data_parallel_rank",
            "use_cache",
            "draft_model",
            "ttl",
            "provider",
        ],
        Any,
        "about the caller or the work, not about the answer",
    ),
    row(Body, &["store"], Any, "no answer is kept, and there is no route to get one back"),
    row(
        Body,
        &["previous_response_id", "conversation", "container"],
        NONE,
        "nothing is stored: send the whole conversation",
    ),
    row(Body, &["background"], FALSE, "an answer comes on the connection of its request"),
    row(
        Body,
        &["include", "mcp_servers", "context_management"],
        EMPTY,
        "this is not reported or done",
    ),
    row(Body, &["truncation"], Only(&["\"disabled\""]), "a prompt is never cut"),
    row(Body, &["max_tool_calls"], NONE, "tools are run by the client"),
    row(
        Body,
        &["dimensions"],
        NONE,
        "an embedding has as many numbers as the model's hidden state",
    ),
    // Settings of something that is off.
    row(
        Body,
        &["parallel_tool_calls", "parse_tool_calls", "tool_prompt"],
        Any,
        "there are no tools",
    ),
    row(
        Body,
        &["guided_decoding_backend", "grammar_triggers", "preserved_tokens"],
        Any,
        "about how a grammar is followed, not about the answer",
    ),
    row(Body, &["length_penalty", "early_stopping"], Any, "there are no beams"),
    row(
        Body,
        &["dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"],
        Any,
        OFF,
    ),
    row(Body, &["mirostat_tau", "mirostat_eta", "xtc_threshold", "dynatemp_exponent"], Any, OFF),
    row(
        Body,
        &["include_reasoning", "separate_reasoning", "stream_reasoning", "reasoning_format"],
        Any,
        "an answer is one text",
    ),
    row(Body, &["spaces_between_special_tokens"], Any, "special tokens are not shown"),
    row(Body, &["truncation_side", "n_keep", "n_discard"], Any, "nothing is cut"),
    row(
        Body,
        &["mm_processor_kwargs", "media_io_kwargs", "return_mm_kwargs"],
        Any,
        "there are no images",
    ),
    // The length of an answer.
    row(Body, &["max_new_tokens", "max_output_tokens", "max_length", "num_predict"], NONE, LENGTH),
    row(Body, &["n_predict"], Only(&["-1"]), LENGTH),
    row(
        Body,
        &["min_tokens", "min_new_tokens", "min_length"],
        ZERO,
        "an answer ends where the model ends it; ignore_eos makes it go on",
    ),
    row(Body, &["t_max_predict_ms"], Only(&["0", "-1"]), "use timeout"),
    row(
        Body,
        &["truncate_prompt_tokens", "truncate"],
        NONE,
        "a prompt is never cut; one that is too long is refused",
    ),
    row(
        Body,
        &["truncate_sequence"],
        FALSE,
        "a prompt is never cut; one that is too long is refused",
    ),
    // How many answers, and which.
    row(
        Body,
        &["best_of", "n_cmpl", "num_return_sequences"],
        ONE,
        "use n; all n choices are returned",
    ),
    row(Body, &["num_beams", "beam_width"], ONE, "answers are sampled, without beams"),
    row(Body, &["use_beam_search"], FALSE, "answers are sampled, without beams"),
    row(Body, &["do_sample"], TRUE, "use temperature 0"),
    row(Body, &["random_seed"], NONE, "use seed"),
    // Samplers.
    row(Body, &["typical_p", "typ_p", "tfs_z", "encoder_repetition_penalty"], ONE, SAMPLER),
    row(
        Body,
        &[
            "dry_multiplier",
            "xtc_probability",
            "mirostat",
            "mirostat_mode",
            "dynatemp_range",
            "top_a",
            "smoothing_factor",
            "epsilon_cutoff",
            "eta_cutoff",
            "no_repeat_ngram_size",
            "min_keep",
            "penalty_alpha",
        ],
        ZERO,
        SAMPLER,
    ),
    row(Body, &["top_n_sigma"], Only(&["-1", "0"]), SAMPLER),
    row(Body, &["adaptive_target"], Only(&["-1"]), SAMPLER),
    row(
        Body,
        &["samplers"],
        EMPTY,
        "samplers have one order: penalties, temperature, top_k, top_p, min_p",
    ),
    row(Body, &["repeat_penalty"], ONE, "use repetition_penalty"),
    row(Body, &["repeat_last_n"], Only(&["-1"]), "penalties count the whole prompt and answer"),
    row(Body, &["repetition_detection"], EMPTY, SAMPLER),
    row(Body, &["watermark", "watermarking"], FALSE, SAMPLER),
    // Single tokens.
    row(
        Body,
        &["allowed_token_ids", "bad_words", "bad_words_ids", "logits_processors"],
        EMPTY,
        TOKENS,
    ),
    row(Body, &["custom_logit_processor", "custom_params", "vllm_xargs"], EMPTY, TOKENS),
    // Where an answer ends.
    row(
        Body,
        &["stop_token_ids", "stop_regex", "stop_sequences"],
        EMPTY,
        "use stop, which takes strings",
    ),
    row(
        Body,
        &["include_stop_str_in_output", "no_stop_trim"],
        FALSE,
        "a stop string is not part of the answer",
    ),
    row(Body, &["skip_special_tokens"], TRUE, "special tokens are not part of the text"),
    // Structured output.
    row(
        Body,
        &["structural_tag", "regex", "ebnf", "grammar", "json_schema", "format"],
        Only(&["\"\"", "[]"]),
        CONSTRAINED,
    ),
    row(Body, &["guided_whitespace_pattern"], EMPTY, WHITESPACE),
    row(Body, &["grammar_lazy"], FALSE, CONSTRAINED),
    // Tools.
    row(Body, &["tools", "functions", "plugins", "data_sources"], EMPTY, TOOLS),
    row(Body, &["tool_choice", "function_call"], Only(&["\"none\"", "\"auto\""]), TOOLS),
    row(Body, &["web_search_options"], EMPTY, TOOLS),
    row(Body, &["enable_search"], FALSE, TOOLS),
    // Other modalities.
    row(Body, &["modalities"], Only(&["[\"text\"]", "[]"]), MODALITY),
    row(Body, &["audio", "images", "images_config"], EMPTY, MODALITY),
    row(Body, &["use_audio_in_video"], FALSE, MODALITY),
    // Reasoning.
    row(
        Body,
        &["reasoning_effort"],
        Only(&[
            "\"none\"",
            "\"minimal\"",
            "\"low\"",
            "\"medium\"",
            "\"high\"",
            "\"xhigh\"",
            "\"max\"",
        ]),
        "a template that reads it or enable_thinking gets it; other models answer alike at each level",
    ),
    row(Body, &["verbosity"], Only(&["\"medium\""]), "say it in the prompt, or by a preference"),
    row(Body, &["thinking_token_budget"], Only(&["-1"]), "a thinking phase cannot be bounded"),
    row(
        Body,
        &["enable_thinking", "think"],
        FALSE,
        "either value where the template reads enable_thinking; this one does not",
    ),
    row(
        Body,
        &["thinking"],
        Only(&["false", "{\"type\": \"disabled\"}"]),
        "either value where the template reads enable_thinking; this one does not",
    ),
    row(Body, &["thinking_forced_open"], FALSE, TEMPLATE),
    row(Body, &["reasoning"], EMPTY, TEMPLATE),
    // The template.
    row(Body, &["echo"], FALSE, "only /v1/completions repeats its prompt"),
    row(Body, &["add_generation_prompt"], TRUE, TEMPLATE),
    row(Body, &["continue_final_message"], FALSE, TEMPLATE),
    row(Body, &["chat_template"], Only(&["\"\""]), TEMPLATE),
    row(Body, &["chat_template_kwargs"], EMPTY, "only messages go through the template"),
    row(
        Body,
        &["documents"],
        EMPTY,
        "a list of objects where the template of the messages reads documents; this one does not",
    ),
    row(Body, &["safe_prompt"], FALSE, TEMPLATE),
    row(Body, &["guideline", "transforms"], EMPTY, TEMPLATE),
    row(Body, &["system"], EMPTY, "use a message with the role system"),
    row(Body, &["n_indent"], ZERO, "an answer is not indented"),
    row(Body, &["suffix"], Only(&["\"\""]), "text is continued, not filled in"),
    row(
        Body,
        &["input_ids", "prompt_embeds", "input_embeds"],
        EMPTY,
        "use prompt, which takes token ids too",
    ),
    // What an answer reports.
    row(Body, &["top_logprobs", "n_probs", "top_n_tokens"], ZERO, "use logprobs"),
    row(Body, &["logprob_token_ids"], EMPTY, "use logprobs"),
    row(Body, &["prompt_logprobs"], NONE, "use echo with logprobs on /v1/completions"),
    row(
        Body,
        &[
            "return_tokens_as_token_ids",
            "return_token_ids",
            "return_tokens",
            "return_token_offsets",
            "return_prompt_text",
            "return_prompt_token_ids",
            "return_meta_info",
            "return_hidden_states",
            "return_routed_experts",
            "return_cached_tokens_details",
            "return_progress",
            "return_full_text",
            "timings_per_token",
            "post_sampling_probs",
            "details",
            "decoder_input_details",
        ],
        FALSE,
        REPORT,
    ),
    row(Body, &["routed_experts_start_len", "routed_experts_prompt_start"], ZERO, REPORT),
    row(Body, &["response_fields"], EMPTY, "all fields are returned"),
    row(Body, &["stream_interval"], ONE, "each token is sent as it comes"),
    // Where the work is done, and with which weights.
    row(Body, &["extra_key"], EMPTY, "use cache_salt"),
    row(Body, &["kv_transfer_params", "ec_transfer_params", "session_params"], EMPTY, CACHE),
    row(Body, &["bootstrap_host", "bootstrap_port", "bootstrap_room"], NONE, CACHE),
    row(Body, &["lora", "lora_path", "adapters", "adapter_id"], EMPTY, ADAPTER),
    row(Body, &["options"], EMPTY, "options stand in the body itself"),
    // Messages.
    row(
        Message,
        &[
            "id",
            "cache_control",
            "metadata",
            "created_at",
            "createdAt",
            "timestamp",
            "status",
            "weight",
            "index",
        ],
        Any,
        "templates have no place for it",
    ),
    row(
        Message,
        &["reasoning_details"],
        EMPTY,
        "templates read a former turn's reasoning from reasoning_content, reasoning or thinking",
    ),
    row(Message, &["type"], Only(&["\"message\""]), "messages have a role and content"),
    row(Message, &["refusal", "annotations", "citations"], Any, "about a former answer"),
    row(
        Message,
        &["tool_calls", "function_call", "tool_call_id", "tool_name", "tools"],
        EMPTY,
        "an assistant's turn has tool_calls, the answer of a tool the role tool and tool_call_id",
    ),
    row(Message, &["audio", "images", "attachments", "experimental_attachments"], EMPTY, MODALITY),
    row(Message, &["prefix", "partial"], FALSE, TEMPLATE),
    // Parts of content.
    row(
        Part,
        &["id", "cache_control", "annotations", "citations", "logprobs", "metadata"],
        Any,
        "about the part, not its text",
    ),
    // `structured_outputs`.
    row(StructuredOutputs, &["structural_tag"], EMPTY, "use tools, or grammar"),
    row(StructuredOutputs, &["whitespace_pattern"], EMPTY, WHITESPACE),
    row(
        StructuredOutputs,
        &["disable_any_whitespace", "disable_additional_properties"],
        FALSE,
        "say it in the schema",
    ),
    row(
        StructuredOutputs,
        &["disable_fallback", "_backend"],
        Any,
        "about how a grammar is followed, not about the answer",
    ),
    // Responses.
    row(Output, &["verbosity"], Only(&["\"medium\""]), "say it in the prompt, or by a preference"),
    row(Reasoning, &["summary", "generate_summary"], Any, "reasoning is part of the text"),
    // Tools.
    row(
        Tool,
        &["index", "cache_control", "defer_loading", "metadata"],
        Any,
        "about the tool or the call, not about the answer",
    ),
    // `stream_options`.
    row(StreamOptions, &["include_obfuscation"], Any, "chunks are not padded"),
];
