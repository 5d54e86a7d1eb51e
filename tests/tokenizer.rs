//! Text that streams out token by token, against the whole text and against the `tokenizers` crate.

use std::{fs, path::Path};

use ladle::tokenizer::{TextDecoder, Tokenizer, TokenizerError};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// The character that stands for a byte in GPT-2's alphabet, by its definition.
fn byte_characters() -> Vec<char> {
    let printable = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    (0..256)
        .map(|byte| {
            let code = if printable(byte) { byte } else { next };
            next += u32::from(!printable(byte));
            char::from_u32(code).expect("a character")
        })
        .collect()
}

/// Byte-level BPE: 256 bytes, some merges that end inside characters, one special and one plain
/// added token.
fn byte_level() -> Value {
    let bytes = byte_characters();
    let spell = |raw: &[u8]| raw.iter().map(|b| bytes[usize::from(*b)]).collect::<String>();
    let mut tokens: Vec<String> = (0..=255u8).map(|b| spell(&[b])).collect();
    let pairs: [(&[u8], &[u8]); 8] = [
        (b" ", b"t"),
        (b" t", b"h"),
        (b"e", b"r"),
        ("😀".as_bytes().split_at(2).0, &[0x98]),
        (&[0xf0], &[0x9f]),
        (&[0xe4], &[0xbb]),
        (&[0xe4, 0xbb], &[0x8a]),
        (&[0x80], b"a"),
    ];
    let mut merges = Vec::new();
    for (left, right) in
        [pairs[0], pairs[1], pairs[2], pairs[4], pairs[3], pairs[5], pairs[6], pairs[7]]
    {
        merges.push(json!([spell(left), spell(right)]));
        tokens.push(spell(&[left, right].concat()));
    }
    let vocab: Map<String, Value> =
        tokens.iter().enumerate().map(|(id, t)| (t.clone(), json!(id))).collect();
    let added = |id: usize, content: &str, special: bool| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false, "special": special})
    };
    let n = tokens.len();
    json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "normalizer": null,
        "added_tokens": [added(n, "<|end|>", true), added(n + 1, "<tool call>", false)],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "vocab": vocab, "merges": merges},
    })
}

/// SentencePiece-like BPE as Llama 2 publishes it: `▁` for spaces, byte fallback, BOS template.
fn sentence_piece() -> Value {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend((0..=255u8).map(|b| format!("<0x{b:02X}>")));
    tokens.extend("▁abcdefghijklmnopqrstuvwxyzé.".chars().map(String::from));
    tokens.extend(["▁a", "th", "▁th", "▁▁"].map(str::to_owned));
    let vocab: Map<String, Value> =
        tokens.iter().enumerate().map(|(id, t)| (t.clone(), json!(id))).collect();
    let special = |id: usize, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false, "special": true})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
                  "merges": [["▁", "a"], ["t", "h"], ["▁", "th"], ["▁", "▁"]]},
    })
}

fn load(json: &Value, files: &[(&str, Value)]) -> Result<Tokenizer, TokenizerError> {
    let dir = tempfile::tempdir().expect("a directory");
    let write = |name: &str, value: &Value| {
        fs::write(dir.path().join(name), value.to_string()).expect("written");
    };
    write("tokenizer.json", json);
    for (name, value) in files {
        write(name, value);
    }
    Tokenizer::from_dir(dir.path())
}

fn reference(json: &Value) -> tokenizers::Tokenizer {
    tokenizers::Tokenizer::from_bytes(json.to_string()).expect("a tokenizer")
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> (Vec<String>, String) {
    let mut decoder = TextDecoder::new(tokenizer, skip_special);
    let mut pieces: Vec<String> = ids.iter().map(|id| decoder.push(*id)).collect();
    pieces.push(decoder.finish());
    let whole = pieces.concat();
    (pieces, whole)
}

proptest! {
    #[test]
    fn any_byte_level_tokens_stream_to_the_text_of_them_all(
        ids in prop::collection::vec(0u32..270, 0..60), skip_special: bool,
    ) {
        let json = byte_level();
        let tokenizer = load(&json, &[]).expect("loads");
        let expected = reference(&json).decode(&ids, skip_special).expect("decodes");
        let (_, whole) = streamed(&tokenizer, &ids, skip_special);
        prop_assert_eq!(&whole, &expected);
        prop_assert_eq!(tokenizer.decode(&ids, skip_special), expected);
    }

    #[test]
    fn text_comes_back_whole_and_never_as_half_characters(
        text in "\\PC{0,40}|[ \\n\\t]{0,9}|(😀|👩‍👩‍👧|今日|é|a ){0,12}",
    ) {
        prop_assume!(!text.contains(char::REPLACEMENT_CHARACTER));
        for json in [byte_level(), sentence_piece()] {
            let tokenizer = load(&json, &[]).expect("loads");
            let ids = tokenizer.encode(&text, true).expect("encodes");
            let (pieces, whole) = streamed(&tokenizer, &ids, true);
            prop_assert_eq!(&whole, &text);
            prop_assert_eq!(whole, reference(&json).decode(&ids, true).expect("decodes"));
            prop_assert!(pieces.iter().all(|p| !p.contains(char::REPLACEMENT_CHARACTER)), "{:?}", pieces);
        }
    }
}

#[test]
fn a_character_is_given_out_with_its_last_byte() {
    let tokenizer = load(&byte_level(), &[]).expect("loads");
    let mut decoder = TextDecoder::new(&tokenizer, true);
    let pieces: Vec<String> = "é😀!".bytes().map(|byte| decoder.push(u32::from(byte))).collect();
    assert_eq!(pieces, ["", "é", "", "", "", "😀", "!"]);
    assert_eq!(decoder.finish(), "");
}

#[test]
fn bytes_that_can_no_longer_become_a_character_are_replaced_at_once() {
    let tokenizer = load(&byte_level(), &[]).expect("loads");
    let mut decoder = TextDecoder::new(&tokenizer, true);
    assert_eq!(decoder.push(0xf0), "");
    assert_eq!(decoder.push(0x9f), "");
    assert_eq!(decoder.push(u32::from(b'a')), "\u{fffd}a");
    assert_eq!(decoder.push(0x80), "\u{fffd}");
    assert_eq!(decoder.push(0xe4), "");
    assert_eq!(decoder.finish(), "\u{fffd}");
    assert_eq!(decoder.finish(), "");
}

#[test]
fn special_tokens_in_a_text_are_read_as_tokens_and_left_out_of_its_decoding() {
    let tokenizer = load(&byte_level(), &[]).expect("loads");
    let end = tokenizer.id("<|end|>").expect("an id");
    let call = tokenizer.id("<tool call>").expect("an id");
    let ids = tokenizer.encode("a<|end|><tool call>", true).expect("encodes");
    assert_eq!(ids, [u32::from(b'a'), end, call]);
    assert_eq!(tokenizer.decode(&ids, true), "a<tool call>");
    assert_eq!(tokenizer.decode(&ids, false), "a<|end|><tool call>");
    assert!(tokenizer.is_special(end) && !tokenizer.is_special(call));
    assert_eq!(tokenizer.token(end).as_deref(), Some("<|end|>"));
    assert_eq!(tokenizer.vocab_size(), 266);
}

#[test]
fn ids_outside_the_vocabulary_have_no_text() {
    let tokenizer = load(&byte_level(), &[]).expect("loads");
    assert_eq!(tokenizer.decode(&[u32::from(b'a'), 100_000, u32::from(b'b')], true), "ab");
}

#[test]
fn a_published_truncation_does_not_cut_prompts() {
    let tokenizer = load(&byte_level(), &[]).expect("loads");
    assert_eq!(tokenizer.encode("abcdefgh", true).expect("encodes").len(), 8);
}

/// A text of megabytes was encoded to its end before its length was looked at.
#[test]
fn a_text_that_is_far_too_long_is_not_encoded_to_its_end() {
    for json in [byte_level(), sentence_piece()] {
        let tokenizer = load(&json, &[]).expect("loads");
        for part in ["a", " ", "é", "<|end|>", "ab 😀\n", "th"] {
            let text = part.repeat((4 << 20) / part.len());
            let mut asked = 0;
            let count = || {
                asked += 1;
                Ok::<_, TokenizerError>(())
            };
            assert!(tokenizer.exceeds(&text, None, 1000, count).expect("encodes"), "{part:?}");
            assert_eq!(asked, 1, "{part:?}");
            // A text that fits is never taken for too long.
            let text = part.repeat(150_000 / part.len());
            let most = tokenizer.encode(&text, false).expect("encodes").len();
            let go_on = || Ok::<_, TokenizerError>(());
            assert!(!tokenizer.exceeds(&text, None, most, go_on).expect("encodes"), "{part:?}");
        }
    }
}

#[test]
fn the_tokens_around_a_text_are_added_only_on_request() {
    let files =
        [("tokenizer_config.json", json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}}))];
    let tokenizer = load(&sentence_piece(), &files).expect("loads");
    let with = tokenizer.encode("a", true).expect("encodes");
    let without = tokenizer.encode("a", false).expect("encodes");
    assert_eq!(with.split_first(), Some((&1, without.as_slice())));
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), [2].as_slice()));
    assert_eq!(tokenizer.decode(&without, true), "a");
}

#[test]
fn every_file_that_names_an_end_of_text_counts() {
    let files = [
        ("tokenizer_config.json", json!({"eos_token": "<|end|>"})),
        ("config.json", json!({"eos_token_id": [7, 8]})),
        ("generation_config.json", json!({"eos_token_id": 8})),
    ];
    let tokenizer = load(&byte_level(), &files).expect("loads");
    assert_eq!(tokenizer.eos(), [8, 7, 264]);
}

#[test]
fn a_broken_tokenizer_is_refused_by_name() {
    let missing = Tokenizer::from_dir(Path::new("/nonexistent")).expect_err("absent");
    assert!(missing.to_string().contains("/nonexistent/tokenizer.json"), "{missing}");

    let error = load(&json!({"version": "1.0"}), &[]).expect_err("no model");
    assert!(matches!(error, TokenizerError::Format { .. }), "{error}");

    let mut json = byte_level();
    json["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    let error = load(&json, &[]).expect_err("an unknown decoder");
    assert!(error.to_string().contains("WordPiece"), "{error}");
}

#[test]
fn a_decoder_means_what_its_steps_say_or_is_refused() {
    let space = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    let [bytes, fuse] = ["ByteFallback", "Fuse"].map(|kind| json!({"type": kind}));
    let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
    let metaspace = |scheme: &str| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true});
    let with = |steps: &[&Value]| {
        let mut json = sentence_piece();
        json["decoder"] = match steps {
            [only] => (*only).clone(),
            steps => json!({"type": "Sequence", "decoders": steps}),
        };
        json
    };
    // Ids of é in bytes between words, and of a run of spaces.
    let texts = ["a th é.", "\u{4}", "  a  th", " th"];
    for steps in [
        &[&space, &bytes, &fuse, &strip][..],
        &[&space, &bytes, &fuse],
        &[&bytes, &fuse, &space],
        &[&space, &fuse],
        &[&metaspace("always")],
        &[&metaspace("never")],
        &[&metaspace("first"), &bytes],
        &[&bytes, &metaspace("always"), &fuse],
    ] {
        let json = with(steps);
        let tokenizer = load(&json, &[]).expect("loads");
        for text in texts {
            let ids = tokenizer.encode(text, false).expect("encodes");
            let expected = reference(&json).decode(&ids, true).expect("decodes");
            let (_, whole) = streamed(&tokenizer, &ids, true);
            assert_eq!(whole, expected, "{steps:?}: {text:?}");
        }
    }
    for steps in [
        &[&bytes, &fuse][..],
        &[&space, &strip],
        &[&space, &fuse, &bytes],
        &[&fuse, &metaspace("always")],
        &[&space, &bytes, &fuse, &json!({"type": "Strip", "content": " ", "start": 2, "stop": 0})],
        &[&json!({"type": "CTC", "pad_token": "", "word_delimiter_token": "|", "cleanup": true})],
    ] {
        let error = load(&with(steps), &[]).expect_err("another decoder").to_string();
        assert!(error.contains("decoder") && error.contains("not supported"), "{error}");
    }
}

/// `tests/reference/tokenizer_settings.py`: files beside a tokenizer.json that change its tokens.
#[test]
fn what_the_files_beside_a_tokenizer_say_is_read_as_transformers_reads_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let json = |path: &str| -> Value {
        serde_json::from_slice(&fs::read(root.join(path)).unwrap()).unwrap()
    };
    let reference = json("tokenizer_settings.json");
    let texts: Vec<&str> = strings(&reference["texts"]).collect();
    for (name, case) in reference["cases"].as_object().unwrap() {
        let mut own = json("soup-tiny/base/tokenizer.json");
        for (pointer, value) in case["edits"].as_object().unwrap() {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            own.pointer_mut(parent).unwrap()[key] = value.clone();
        }
        let files: Vec<(&str, Value)> = case["files"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(file, value)| (file.as_str(), value.clone()))
            .collect();
        let tokenizer = load(&own, &files).unwrap();
        let ids: Vec<Vec<u32>> = serde_json::from_value(case["ids"].clone()).unwrap();
        for ((text, ids), decoded) in texts.iter().zip(ids).zip(strings(&case["texts"])) {
            assert_eq!(tokenizer.encode(text, true).unwrap(), ids, "{name}: {text}");
            assert_eq!(tokenizer.decode(&ids, true), decoded, "{name}: {text}");
        }
    }
}

fn strings(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap())
}

#[test]
fn files_that_contradict_a_tokenizer_are_refused_by_name() {
    let settings = |settings: Value| [("tokenizer_config.json", settings)];
    let token = |content: &str| json!({"content": content, "special": true});
    for (files, expected) in [
        (
            settings(json!({"added_tokens_decoder": {"7": token("<|end|>")}})),
            "tokenizer_config.json: token \"<|end|>\" has id 7, but in tokenizer.json it has 264",
        ),
        (
            settings(json!({"added_tokens_decoder": {"900": token("<new>")}})),
            "token \"<new>\" has id 900, but in tokenizer.json it has 266",
        ),
        (settings(json!({"added_tokens_decoder": {"x": token("a")}})), "added_tokens_decoder.x is"),
        (settings(json!({"added_tokens_decoder": {"1": "a"}})), "added_tokens_decoder.1 is \"a\""),
        (settings(json!({"split_special_tokens": 1})), "split_special_tokens is 1"),
        (
            settings(json!({"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": true})),
            "add_prefix_space is true for GPT2Tokenizer",
        ),
        ([("added_tokens.json", json!({"<new>": 900}))], "added_tokens.json: token \"<new>\""),
        (
            [("generation_config.json", json!({"eos_token_id": "2"}))],
            "generation_config.json: eos_token_id is \"2\", must be a token id or a list of them",
        ),
        (settings(json!(["bos_token"])), "tokenizer_config.json: is not a JSON object"),
        ([("special_tokens_map.json", json!(5))], "special_tokens_map.json: is not a JSON object"),
        ([("generation_config.json", json!({"eos_token_id": [2, -1]}))], "eos_token_id is [2,-1]"),
    ] {
        let error = load(&byte_level(), &files).expect_err(expected).to_string();
        assert!(error.contains(expected), "{expected} is not in: {error}");
    }
}

#[test]
fn an_older_directory_names_its_special_tokens_in_a_file_of_their_own() {
    let older = ("special_tokens_map.json", json!({"eos_token": {"content": "<|end|>"}}));
    for beside in [vec![], vec![("tokenizer_config.json", json!({"eos_token": "a"}))]] {
        let files = [vec![older.clone()], beside].concat();
        assert_eq!(load(&byte_level(), &files).expect("loads").eos(), [264]);
    }
    let newer = json!({"added_tokens_decoder": {}});
    let files = [older, ("tokenizer_config.json", newer)];
    assert_eq!(load(&byte_level(), &files).expect("loads").eos(), [0u32; 0]);
}

/// As in transformers 5: the post-processor decides, and CodeLlama's class adds the token regardless.
#[test]
fn a_class_that_always_begins_with_bos_is_refused_where_the_file_adds_none() {
    let dir = tempfile::tempdir().unwrap();
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/soup-tiny/base");
    fs::copy(base.join("tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    let load = |class: &str, add_bos: Option<bool>| {
        let settings = serde_json::json!({
            "tokenizer_class": class, "add_bos_token": add_bos, "bos_token": "<|im_start|>",
        });
        fs::write(dir.path().join("tokenizer_config.json"), settings.to_string()).unwrap();
        Tokenizer::from_dir(dir.path())
    };
    for (class, add_bos) in [("LlamaTokenizer", None), ("LlamaTokenizerFast", Some(true))] {
        let plain = load(class, add_bos).unwrap().encode("soup", true).unwrap();
        assert_eq!(plain, [85, 335, 82]);
    }
    let error = load("CodeLlamaTokenizerFast", None).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json: tokenizer_class CodeLlamaTokenizer"), "{error}");
}
