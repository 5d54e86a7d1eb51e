//! Chat templates against transformers' `apply_chat_template` (`reference/chat_templates.py`).

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read},
    time::{Duration, SystemTime},
};

use ladle::chat::{ChatError, ChatTemplate, Conversation, Message};
use serde_json::{Value, json};

fn template(source: &str) -> ChatTemplate {
    let special = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
    ChatTemplate::new(source, special).expect("a valid template")
}

fn user(content: &str) -> Conversation {
    Conversation { messages: vec![Message::new("user", content)], ..Conversation::default() }
}

#[test]
fn templates_render_as_transformers_renders_them() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/chat.json");
    let fixture: Value =
        serde_json::from_slice(&fs::read(path).expect("the fixture")).expect("JSON");
    let special: BTreeMap<String, String> =
        serde_json::from_value(fixture["special"].clone()).expect("special tokens");
    let now = SystemTime::UNIX_EPOCH
        + Duration::from_secs(fixture["now"].as_u64().expect("seconds since 1970"));
    let cases = fixture["cases"].as_array().expect("cases");
    assert!(cases.len() >= 80, "the fixture lost cases: {}", cases.len());
    for case in cases {
        let name = case["template"].as_str().expect("a name");
        let source = fixture["templates"][name].as_str().expect("a template");
        let template = ChatTemplate::new(source, special.clone()).expect(name);
        let conversation = case["conversation"].as_str().expect("a name");
        let messages = fixture["conversations"][conversation].clone();
        let rendered = template.render_at(
            &Conversation {
                messages: serde_json::from_value(messages).expect("messages"),
                add_generation_prompt: case["add_generation_prompt"] == true,
                ..Conversation::default()
            },
            now,
        );
        match case["refused"].as_str() {
            None => assert_eq!(
                rendered.as_deref().ok(),
                case["text"].as_str(),
                "{name} on {conversation}: {rendered:?}"
            ),
            Some(reason) => {
                let Err(ChatError::Refused(said)) = rendered else {
                    panic!("{name} on {conversation}: expected a refusal, got {rendered:?}");
                };
                assert_eq!(said, reason);
            }
        }
    }
}

#[test]
fn what_a_user_writes_is_never_run() {
    let template = template("{% for m in messages %}{{ m.content }}{% endfor %}");
    let hostile = "{{ 7 * 7 }}{% raw %}{{ bos_token }}{% include 'x' %}{#";
    assert_eq!(template.render(&user(hostile)).expect("renders"), hostile);
}

#[test]
fn a_template_that_never_ends_is_stopped() {
    let source = "{% for a in range(10000) %}{% for b in range(10000) %}{% for c in range(10000) \
                  %}{% endfor %}{% endfor %}{% endfor %}";
    let error = template(source).render(&user("Hi")).expect_err("too long");
    assert!(matches!(error, ChatError::Limit { .. }), "{error}");
    assert!(error.to_string().contains("instructions"), "{error}");
}

#[test]
fn a_template_that_floods_is_stopped() {
    let source = "{% for a in range(10000) %}{{ 'x' * 9000 }}{% endfor %}";
    let error = template(source).render(&user("Hi")).expect_err("too much");
    assert!(matches!(error, ChatError::Limit { .. }), "{error}");
    assert!(error.to_string().contains("bytes"), "{error}");
}

#[test]
fn a_template_cannot_recurse_for_ever() {
    let source = "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}";
    template(source).render(&user("Hi")).expect_err("endless");
}

#[test]
fn a_template_that_is_not_jinja_is_refused_when_it_is_loaded() {
    let error = ChatTemplate::new("{% for m in %}", BTreeMap::new()).expect_err("not Jinja");
    assert!(matches!(error, ChatError::Syntax(_)), "{error}");
}

#[test]
fn dates_are_those_of_the_calendar_in_utc() {
    let template =
        template("{{ strftime_now('%A %a %d %B %b %m %Y %y %j %H:%M:%S %I%p %F %T %%') }}");
    let at = |seconds| {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        template.render_at(&Conversation::default(), now).expect("a date")
    };
    // Values of Python's datetime.fromtimestamp(seconds, timezone.utc).strftime(...).
    assert_eq!(
        at(0),
        "Thursday Thu 01 January Jan 01 1970 70 001 00:00:00 12AM 1970-01-01 00:00:00 %"
    );
    assert_eq!(
        at(951_868_799),
        "Tuesday Tue 29 February Feb 02 2000 00 060 23:59:59 11PM 2000-02-29 23:59:59 %"
    );
    assert_eq!(
        at(4_107_542_400),
        "Monday Mon 01 March Mar 03 2100 00 060 00:00:00 12AM 2100-03-01 00:00:00 %"
    );
    assert_eq!(
        at(1_767_182_399),
        "Wednesday Wed 31 December Dec 12 2025 25 365 11:59:59 11AM 2025-12-31 11:59:59 %"
    );
}

#[test]
fn the_template_comes_from_either_file_of_a_model() {
    let dir = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("written");
    let load = || ChatTemplate::from_dir(dir.path());
    let rendered = || {
        let template = load().expect("readable").expect("a template");
        template.render(&user("Hi")).expect("renders")
    };
    assert!(load().expect("no files").is_none());

    write("tokenizer_config.json", r#"{"bos_token": {"content": "<b>"}, "eos_token": null}"#);
    assert!(load().expect("no template").is_none());

    let config = json!({
        "bos_token": {"content": "<b>"},
        "chat_template": "{{ bos_token }}{{ messages[0].content }}",
    });
    write("tokenizer_config.json", &config.to_string());
    assert_eq!(rendered(), "<b>Hi");

    let config = json!({"chat_template": [
        {"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"},
    ]});
    write("tokenizer_config.json", &config.to_string());
    assert_eq!(rendered(), "yes");

    write("chat_template.jinja", "file {{ messages | length }}");
    assert_eq!(rendered(), "file 1");

    write("tokenizer_config.json", "{");
    let error = load().expect_err("not JSON");
    assert!(error.to_string().contains("tokenizer_config.json"), "{error}");
}

/// The texts that transformers 5.24 makes of these files.
#[test]
fn special_tokens_of_every_file_reach_the_template() {
    let template = "{{ image_token }}|{{ bos_token }}|{{ eos_token }}";
    let older = json!({"bos_token": {"content": "<b>"}, "eos_token": "<end>"});
    for (config, older, expected) in [
        (json!({"extra_special_tokens": {"image_token": "<i>"}}), Value::Null, "<i>||<e>"),
        (json!({}), older.clone(), "|<b>|<end>"),
        (json!({"added_tokens_decoder": {}}), older, "||<e>"),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let mut config = config;
        config["chat_template"] = template.into();
        config["eos_token"] = "<e>".into();
        fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).expect("written");
        if !older.is_null() {
            let path = dir.path().join("special_tokens_map.json");
            fs::write(path, older.to_string()).expect("written");
        }
        let template = ChatTemplate::from_dir(dir.path()).expect("readable").expect("a template");
        assert_eq!(template.render(&user("x")).expect("renders"), expected, "{config}");
    }
}

#[test]
fn every_construct_means_what_it_means_in_transformers() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/chat_constructs.json.gz");
    let mut text = String::new();
    let compressed = fs::File::open(path).expect("the fixture");
    flate2::read::GzDecoder::new(compressed).read_to_string(&mut text).expect("gzip");
    let fixture: Value = serde_json::from_str(&text).expect("JSON");
    let special: BTreeMap<String, String> =
        serde_json::from_value(fixture["special"].clone()).expect("special tokens");
    let conversation = Conversation {
        messages: serde_json::from_value(fixture["messages"].clone()).expect("messages"),
        add_generation_prompt: true,
        ..Conversation::default()
    };
    let now = SystemTime::UNIX_EPOCH
        + Duration::from_secs(fixture["now"].as_u64().expect("seconds since 1970"));
    let cases = fixture["cases"].as_array().expect("cases");
    assert!(cases.len() >= 6000, "the fixture lost cases: {}", cases.len());
    let mut differing = Vec::new();
    for case in cases {
        let source = case[0].as_str().expect("a template");
        let rendered = ChatTemplate::new(source, special.clone())
            .and_then(|template| template.render_at(&conversation, now));
        if rendered.as_deref().ok() != case[1].as_str() {
            differing.push(format!("{source}\n  {rendered:?}\n  expected {}", case[1]));
        }
    }
    assert!(differing.is_empty(), "{} differ:\n{}", differing.len(), differing.join("\n"));
}

#[test]
#[ignore = "LADLE_CHAT_CASES names the cases that reference/chat_corpus.py wrote"]
fn published_templates_render_as_transformers_renders_them() {
    let path = std::env::var("LADLE_CHAT_CASES").expect("LADLE_CHAT_CASES");
    let lines = BufReader::new(fs::File::open(path).expect("the cases")).lines();
    let (mut agree, mut all) = (0, 0);
    for line in lines {
        let case: Value = serde_json::from_str(&line.expect("text")).expect("JSON");
        let special = serde_json::from_value(case["special"].clone()).expect("special tokens");
        let conversation = Conversation {
            messages: serde_json::from_value(case["messages"].clone()).expect("messages"),
            add_generation_prompt: case["add_generation_prompt"] == true,
            variables: case["variables"].as_object().cloned().unwrap_or_default(),
        };
        let now =
            SystemTime::UNIX_EPOCH + Duration::from_secs(case["now"].as_u64().expect("a time"));
        let rendered = ChatTemplate::new(case["template"].as_str().expect("a template"), special)
            .and_then(|template| template.render_at(&conversation, now));
        all += 1;
        match rendered.as_deref().ok() == case["text"].as_str() {
            true => agree += 1,
            false => println!("{} on {}: {rendered:?}", case["name"], case["case"]),
        }
    }
    assert!(all > 0);
    assert_eq!(agree, all);
}

/// A template that writes the calls of a turn as `calls` does.
fn calling(calls: &str) -> ChatTemplate {
    template(&format!(
        "{{% if tools %}}{{{{ tools | tojson }}}}{{% endif %}}{{% for m in messages %}}[{{{{ m.role }}}}]{{{{ m.content }}}}\
         {{% if m.tool_calls %}}{calls}{{% endif %}}<end>{{% endfor %}}"
    ))
}

#[test]
fn the_way_calls_are_written_is_read_off_the_template() {
    let hermes = calling(
        "{% for c in m.tool_calls %}{{ '\\n' if not loop.first }}<tool_call>{\"name\": \"{{ c.function.name }}\", \
         \"arguments\": {{ c.function.arguments | tojson }}}</tool_call>{% endfor %}",
    );
    let format = hermes.call_format().expect("a format");
    assert_eq!(format.before, "<tool_call>{\"name\": \"");
    assert_eq!(format.between, "\", \"arguments\": ");
    assert_eq!(format.after, "}</tool_call>");
    assert_eq!((format.separator.as_deref(), format.trigger()), (Some("\n"), "<tool_call>"));
    let spaced = calling(
        "{% for c in m.tool_calls %}{{ '\\n' }}<call>{{ c.function.name }}{{ c.function.arguments | tojson }}</call>{% endfor %}",
    );
    let format = spaced.call_format().expect("a format");
    assert_eq!((format.before.as_str(), format.separator.as_deref()), ("<call>", Some("\n")));
    let one = calling(
        "{% if m.tool_calls | length > 1 %}{{ raise_exception('one') }}{% endif %}{% set c = m.tool_calls[0] %}\
         {\"name\": \"{{ c.function.name }}\", \"parameters\": {{ c.function.arguments | tojson }}}",
    );
    let format = one.call_format().expect("a format");
    assert_eq!((format.separator, format.before.as_str()), (None, "{\"name\": \""));
    for (source, told) in [
        // Its arguments are no JSON.
        ("{{ m.tool_calls[0].function.name }}(x='x')", "not known"),
        (
            "{{ m.tool_calls[0].id }} {{ m.tool_calls[0].function.name }} {{ m.tool_calls[0].function.arguments | tojson }}",
            "ids",
        ),
        ("nothing", "not known"),
    ] {
        let error = calling(source).call_format().expect_err(source);
        assert!(error.contains(told), "{source}: {error}");
    }
    let plain = template("{% for m in messages %}{{ m.content }}{% endfor %}");
    assert!(plain.call_format().expect_err("no tools").contains("no place for tools"));
}

#[test]
#[ignore = "LADLE_TEMPLATES names a folder of published templates, such as llama.cpp's models/templates"]
fn the_calls_of_published_templates() {
    let folder = std::env::var("LADLE_TEMPLATES").expect("LADLE_TEMPLATES");
    let mut triggers = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|ending| ending != "jinja") {
            continue;
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let source = fs::read_to_string(&path).expect("text");
        let special = BTreeMap::from([
            ("bos_token".to_owned(), "<s>".to_owned()),
            ("eos_token".to_owned(), "</s>".to_owned()),
        ]);
        let Ok(template) = ChatTemplate::new(&source, special) else { continue };
        let format = template.call_format();
        println!("{name}: {format:?}");
        if let Ok(format) = format {
            triggers.insert(name, format.trigger().to_owned());
        }
    }
    for (name, trigger) in [
        ("Qwen-Qwen2.5-7B-Instruct", "<tool_call>"),
        ("Qwen-Qwen3-0.6B", "<tool_call>"),
        ("NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use", "<tool_call>"),
        ("NousResearch-Hermes-3-Llama-3.1-8B-tool_use", "<tool_call>"),
        ("meta-llama-Llama-3.1-8B-Instruct", ""),
        ("meta-llama-Llama-3.2-3B-Instruct", ""),
        ("meta-llama-Llama-3.3-70B-Instruct", ""),
    ] {
        assert_eq!(triggers.get(name).map(String::as_str), Some(trigger), "{name}");
    }
}
