//! Fields that other servers have and this one does not, and what becomes of each: the one table.
//!
//! A client that always sends its server's defaults must not fail here, so the values under which
//! such a field changes nothing are accepted. Any other value asks for something that would not
//! happen, and is refused by name. `docs/api.md` shows the same table; a test holds it.

use serde_json::Value;

/// Which object a field stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The body itself.
    Body,
    /// One of `messages`.
    Message,
    /// One part of a message's `content`.
    Part,
    /// `stream_options`.
    StreamOptions,
}

/// A field of other servers.
#[derive(Debug)]
pub struct Foreign {
    place: Place,
    names: &'static [&'static str],
    neutral: Neutral,
    /// Why no other value is possible, or what to use instead; why any value is, where all are.
    reason: &'static str,
}

/// The values that are accepted.
#[derive(Debug)]
enum Neutral {
    /// All: the field has no effect on an answer of this server.
    Any,
    /// Those equal to one of these JSON texts.
    Only(&'static [&'static str]),
    /// Biases of 0, in any form.
    Zeros,
    /// An object whose `type` is `text`.
    Text,
}

use Neutral::{Any, Only, Text, Zeros};
use Place::{Body, Message, Part, StreamOptions};

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

const CONSTRAINED: &str = "output cannot be constrained to a grammar or schema";
const TOOLS: &str = "this server generates text only, without tools";
const SAMPLER: &str =
    "there is no such sampler; temperature, top_p, top_k, min_p and the three penalties are";
const TOKENS: &str = "tokens cannot be forced or forbidden";
const MODALITY: &str = "this server takes and gives text only";
const TEMPLATE: &str = "conversations go through the model's own template, which opens an answer";
const REPORT: &str = "this is not reported";
const OFF: &str = "that sampler is off";
const CACHE: &str = "the prefix cache cannot be divided or moved by a request";
const ADAPTER: &str = "adapters are chosen by preference";
const LENGTH: &str = "use max_tokens";

/// The table. A field that a route has itself is read there and never looked up here.
const TABLE: &[Foreign] = &[
    // About the caller, or about how a server does its work.
    row(
        Body,
        &[
            "user",
            "metadata",
            "safety_identifier",
            "store",
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
        ],
        Any,
        "about the caller or the work, not about the answer",
    ),
    // Settings of something that is off.
    row(Body, &["parallel_tool_calls", "parse_tool_calls"], Any, "there are no tools"),
    row(
        Body,
        &["guided_decoding_backend", "guided_whitespace_pattern"],
        Any,
        "output is not constrained",
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
    // How many answers, and which.
    row(Body, &["best_of", "n_cmpl"], ONE, "use n; all n choices are returned"),
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
        ],
        ZERO,
        SAMPLER,
    ),
    row(Body, &["top_n_sigma"], Only(&["-1", "0"]), SAMPLER),
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
    row(Body, &["logit_bias"], Zeros, TOKENS),
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
        &[
            "guided_json",
            "guided_regex",
            "guided_choice",
            "guided_grammar",
            "structural_tag",
            "regex",
            "ebnf",
            "grammar",
            "json_schema",
            "format",
        ],
        Only(&["\"\"", "[]"]),
        CONSTRAINED,
    ),
    row(Body, &["structured_outputs"], EMPTY, CONSTRAINED),
    row(Body, &["response_format"], Text, CONSTRAINED),
    // Tools.
    row(Body, &["tools", "functions", "plugins"], EMPTY, TOOLS),
    row(Body, &["tool_choice", "function_call"], Only(&["\"none\"", "\"auto\""]), TOOLS),
    row(Body, &["web_search_options"], EMPTY, TOOLS),
    row(Body, &["enable_search"], FALSE, TOOLS),
    // Other modalities.
    row(Body, &["modalities"], Only(&["[\"text\"]", "[]"]), MODALITY),
    row(Body, &["audio", "images", "images_config"], EMPTY, MODALITY),
    // Reasoning.
    row(
        Body,
        &["reasoning_effort"],
        Only(&["\"none\"", "\"minimal\"", "\"low\"", "\"medium\"", "\"high\"", "\"xhigh\""]),
        "expected a level of effort; models without a thinking phase answer alike at each",
    ),
    row(Body, &["verbosity"], Only(&["\"medium\""]), "say it in the prompt, or by a preference"),
    row(Body, &["thinking_token_budget"], Only(&["-1"]), "a thinking phase cannot be bounded"),
    row(Body, &["enable_thinking", "think"], FALSE, TEMPLATE),
    // The template.
    row(Body, &["echo"], FALSE, "only /v1/completions repeats its prompt"),
    row(Body, &["add_generation_prompt"], TRUE, TEMPLATE),
    row(Body, &["continue_final_message"], FALSE, TEMPLATE),
    row(Body, &["chat_template"], Only(&["\"\""]), TEMPLATE),
    row(Body, &["chat_template_kwargs", "documents"], EMPTY, TEMPLATE),
    row(Body, &["safe_prompt"], FALSE, TEMPLATE),
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
    row(Body, &["cache_salt", "extra_key"], EMPTY, CACHE),
    row(Body, &["kv_transfer_params", "ec_transfer_params", "session_params"], EMPTY, CACHE),
    row(Body, &["bootstrap_host", "bootstrap_port", "bootstrap_room"], NONE, CACHE),
    row(Body, &["lora", "lora_path", "adapters", "adapter_id"], EMPTY, ADAPTER),
    row(Body, &["options"], EMPTY, "options stand in the body itself"),
    // Messages.
    row(
        Message,
        &[
            "id",
            "name",
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
        &["reasoning", "reasoning_content", "reasoning_details", "thinking"],
        Any,
        "reasoning of former turns is not shown to the model",
    ),
    row(Message, &["type"], Only(&["\"message\""]), "messages have a role and content"),
    row(Message, &["refusal", "annotations", "citations"], Any, "about a former answer"),
    row(
        Message,
        &["tool_calls", "function_call", "tool_call_id", "tool_name", "tools"],
        EMPTY,
        TOOLS,
    ),
    row(Message, &["audio", "images", "attachments", "experimental_attachments"], EMPTY, MODALITY),
    row(Message, &["prefix", "partial"], FALSE, TEMPLATE),
    // Parts of content.
    row(
        Part,
        &["id", "cache_control", "annotations", "citations", "metadata"],
        Any,
        "about the part, not its text",
    ),
    // `stream_options`.
    row(StreamOptions, &["include_obfuscation"], Any, "chunks are not padded"),
];

/// The row of a field.
pub fn find(place: Place, name: &str) -> Option<&'static Foreign> {
    TABLE.iter().find(|row| row.place == place && row.names.contains(&name))
}

impl Foreign {
    /// Whether the field changes nothing with this value.
    pub fn accepts(&self, value: &Value) -> bool {
        match self.neutral {
            Any => true,
            Only(texts) => texts
                .iter()
                .filter_map(|text| serde_json::from_str(text).ok())
                .any(|neutral| same(value, &neutral)),
            Zeros => is_zero(value),
            Text => value.get("type").is_none_or(|kind| kind == "text") && value.is_object(),
        }
    }

    /// Why the value `got` is refused.
    pub fn refusal(&self, got: &str) -> String {
        let expected = match self.neutral {
            Any => "any value".to_owned(),
            Only([]) => return format!("got {got}; {}", self.reason),
            Only(texts) => texts.join(" or "),
            Zeros => "biases of 0".to_owned(),
            Text => "{\"type\": \"text\"}".to_owned(),
        };
        format!("got {got}, expected {expected}; {}", self.reason)
    }
}

/// Equality of JSON in which 1 is 1.0.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        _ => a == b,
    }
}

/// No bias: `{}`, `{"50256": 0}`, `[]`, `[[50256, 0.0]]`.
fn is_zero(bias: &Value) -> bool {
    let zero = |value: &Value| value.as_f64() == Some(0.0);
    match bias {
        Value::Object(map) => map.values().all(zero),
        Value::Array(pairs) => pairs.iter().all(|pair| pair.get(1).is_some_and(zero)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table as `docs/api.md` shows it.
    fn page() -> String {
        let mut page =
            String::from("| field | accepted | why, or what to use instead |\n|---|---|---|\n");
        for row in TABLE {
            let place = match row.place {
                Body => "",
                Message => "messages[].",
                Part => "content[].",
                StreamOptions => "stream_options.",
            };
            let names: Vec<String> =
                row.names.iter().map(|name| format!("`{place}{name}`")).collect();
            let accepted = match row.neutral {
                Any => "any value".to_owned(),
                Only([]) => "—".to_owned(),
                Only(texts) => {
                    texts.iter().map(|text| format!("`{text}`")).collect::<Vec<_>>().join(", ")
                }
                Zeros => "biases of 0".to_owned(),
                Text => "`{\"type\": \"text\"}`".to_owned(),
            };
            page += &format!("| {} | {accepted} | {} |\n", names.join(", "), row.reason);
        }
        page
    }

    #[test]
    fn the_page_shows_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/api.md");
        let text = std::fs::read_to_string(path).unwrap();
        let expected = page();
        assert!(text.contains(&expected), "docs/api.md lacks this table:\n\n{expected}");
    }

    #[test]
    fn each_field_has_one_row_and_each_neutral_value_is_json() {
        let mut seen = std::collections::HashSet::new();
        for row in TABLE {
            for name in row.names {
                assert!(seen.insert((row.place as u8, *name)), "{name} has two rows");
            }
            if let Only(texts) = row.neutral {
                for text in texts {
                    let value: Value = serde_json::from_str(text).unwrap();
                    assert!(row.accepts(&value), "{text}");
                }
            }
        }
    }
}
