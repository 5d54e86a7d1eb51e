//! Readers on made-up rows in the published layouts, on broken rows, and on the real files where
//! `LADLE_DATA` says where they are.

use ladle_training::data::{
    DataError, Example, Role, alce,
    general::{self, Columns},
    hh_rlhf,
    prompt::PromptTemplate,
    qa_feedback::{self, ErrorKind},
    rows::OnMalformed::{Fail, Skip},
    scitldr, shopping,
    split::split,
    tldr,
};
use ladle_training::{config::DataConfig, error::RunError, layout::Places, run::Run, setup::Base};
use serde_json::json;
use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/training/data").join(name)
}

fn written(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

#[test]
fn scitldr_gives_the_abstract_and_its_summaries() {
    let read = scitldr::read(&fixture("scitldr.jsonl"), Fail).unwrap().rows;
    assert_eq!(read.len(), 2);
    assert_eq!(read[0].id, "boat1");
    assert_eq!(read[0].prompt(), "Boats leak. We caulk them.");
    assert_eq!(read[0].references, ["We caulk boats.", "A paper on caulking."]);
    assert_eq!(read[0].fields["source"], read[0].prompt());
    assert_eq!(read[0].fields["title"], "On Boats");
}

#[test]
fn qa_feedback_spans_are_bytes_and_preferences_pairs() {
    let read = qa_feedback::read(&fixture("qa_feedback.jsonl"), Fail).unwrap().rows;
    let row = &read[0];
    let marked: Vec<_> =
        row.errors.iter().map(|e| (e.kind, &row.predictions[0][e.bytes.clone()])).collect();
    assert_eq!(marked, [(ErrorKind::Relevance, "Élan:"), (ErrorKind::Factuality, "It floats.")]);
    assert_eq!((row.missing, row.corrected.as_str()), (1, "Ann built it."));
    assert_eq!(row.preferences, [(0, 1), (0, 3), (2, 1), (1, 3), (2, 3)]);
    let prompt = row.example.prompt();
    assert!(prompt.starts_with("Who built the naïve boat?\n\nBoat is a vessel. Ann built it."));
    assert!(prompt.ends_with("Shed\nIt stood in a shed."));
}

#[test]
fn hh_dialogues_become_turns_and_two_responses() {
    let read = hh_rlhf::read(&fixture("hh_rlhf.jsonl"), Fail).unwrap().rows;
    let roles: Vec<Role> = read[0].messages.iter().map(|m| m.role).collect();
    assert_eq!(roles, [Role::User, Role::Assistant, Role::User]);
    assert_eq!(read[0].messages[2].content, "A small one.");
    let dialogue = read[0].fields["dialogue"].as_str().unwrap();
    assert!(dialogue.starts_with("\n\nHuman: "), "{dialogue:?}");
    assert!(dialogue.ends_with("\n\nHuman: A small one.\n\nAssistant:"), "{dialogue:?}");
    assert_eq!((read[0].chosen.as_str(), read[0].rejected.as_str()), ("Caulk it.", "No idea."));
    assert_eq!(read[1].rejected, "");
}

#[test]
fn tldr_posts_and_comparisons_in_both_layouts() {
    let posts = tldr::read(&fixture("tldr.jsonl"), Fail).unwrap().rows;
    assert_eq!(posts[0].references, ["boat leaks"]);
    assert_eq!(posts[1].references, ["kite fell"]);
    let pairs = tldr::read_comparisons(&fixture("tldr_comparisons.jsonl"), Fail).unwrap().rows;
    let prompt = &pairs[0].messages[0].content;
    assert_eq!(prompt, "SUBREDDIT: r/boats\nTITLE: Leak\nPOST: My boat leaks.\nTL;DR:");
    assert_eq!((pairs[0].chosen.as_str(), pairs[0].rejected.as_str()), ("boat leaks", "it sinks"));
    assert_eq!(pairs[1].chosen, "kite fell");
}

#[test]
fn alce_numbers_its_documents_and_keeps_what_scores_need() {
    let read = alce::read(&fixture("alce.json"), 1, Fail).unwrap().rows;
    assert_eq!(read[0].id, "7");
    assert_eq!(
        read[0].prompt(),
        "Document [1](Title: Boat\nAnn built the boat.)\n\nQuestion: Who built the boat?"
    );
    assert_eq!(read[0].references, ["Ann built it.", "It was Ann."]);
    assert_eq!(read[0].fields["docs"], json!(["Title: Boat\nAnn built the boat."]));
    assert_eq!(read[0].fields["qa_pairs"][0]["short_answers"][0], "Ann");
    assert_eq!(read[1].references, ["No wind."]);
    assert_eq!(read[1].fields["claims"], json!(["There is no wind."]));
    assert!(!read[1].fields.contains_key("qa_pairs"));
}

#[test]
fn shopping_records_of_every_kind() {
    let read = shopping::read_ecinstruct(&fixture("ecinstruct.json"), Fail).unwrap().rows;
    assert_eq!(read[0].prompt(), "Pick the category.\n\nA red boat\n\nA: toys\nB: food");
    assert_eq!((read[0].references[0].as_str(), &read[0].fields["task"]), ("A", &json!("PC")));
    assert_eq!(read[1].prompt(), "Name the colour.\n\n{\"title\":\"Red boat\"}");
    let read = shopping::read_mmlu(&fixture("mmlu.jsonl"), Fail).unwrap().rows;
    assert_eq!(read[1].references, ["Acme, Boatco"]);
    assert_eq!(read[0].fields["relevance"], json!([1, 0.5, 0]));
    assert_eq!(read[1].fields["labels"], json!(["Acme", "Boatco"]));
    assert_eq!(read[2].references, ["das Boot"]);
    let read = shopping::read_mmlu_choices(&fixture("mmlu_choices.csv"), Fail).unwrap().rows;
    assert_eq!(
        read[0].prompt(),
        "Which floats, a \"boat\" or a stone?\n0. a boat\n1. it's a stone\n2. both\n3. none"
    );
    assert_eq!(read[0].fields["label"], "0");
    assert_eq!(read[1].id, "line-3");
    assert_eq!(read[1].prompt(), "Two\nlines\n0. x\n1. y");
    let csv = written("question,choices,answer\nq,\"['a\\nb', 'it\\'s']\",1\n");
    let read = shopping::read_mmlu_choices(csv.path(), Fail).unwrap().rows;
    assert_eq!(read[0].prompt(), "q\n0. a\nb\n1. it's");
}

/// Rows as the two data sets publish them, judged by the metrics of their task.
#[test]
fn shopping_rows_have_the_fields_that_their_metrics_need() {
    let score = |kind: &str, example: &Example, response: &str| -> f64 {
        let reward = toml::from_str(&format!("kind = \"{kind}\"")).unwrap();
        let reward = ladle_training::rewards::registry::build("it", reward).unwrap();
        let (prompt, fields) = (example.prompt().to_owned(), example.fields.clone());
        let references = example.references.clone();
        let response = response.to_owned();
        let sample = ladle_training::rewards::Sample {
            prompt,
            response,
            references,
            fields,
            ..Default::default()
        };
        reward.score(&[sample]).unwrap()[0]
    };
    let file = written(
        r#"[
{"task": "Attribute_Value_Extraction", "split": "test", "setting": "IND_Single_Instruction",
 "instruction": "Extract the value of the target attribute.", "input": "product title: Red boat", "options": null,
 "output": "[{\"attribute\": \"Colour\", \"value\": \"Red\", \"source\": \"product title\"}, {\"attribute\": \"Size\", \"value\": null, \"source\": null}]"},
{"task": "Query_Product_Ranking", "instruction": "Rank the products.", "input": "query: boat\nA: a car\nB: a boat\nC: an oar", "output": "B,C,A"},
{"task": "Sequential_Recommendation", "instruction": "Predict the next.", "input": "1st: oar", "options": ["A: a car", "B: a boat"], "output": "B"},
{"task": "Sentiment_Analysis", "instruction": "Which?", "input": "good", "options": ["A: very positive", "B: positive"], "output": "A"}]"#,
    );
    let read = shopping::read_ecinstruct(file.path(), Fail).unwrap().rows;
    let [extraction, ranking, next, sentiment] = read.as_slice() else { panic!("{read:?}") };
    let colour = r#"[{"source": "product title", "attribute": "Colour", "value": "Red"}]"#;
    assert_eq!(score("micro-f1", extraction, &extraction.references[0]), 1.0);
    assert!((score("micro-f1", extraction, colour) - 2.0 / 3.0).abs() < 1e-12);
    assert_eq!(score("micro-f1", extraction, &colour.replace("Red", "Blue")), 0.0);
    assert_eq!(ranking.fields["items"], json!(["A", "B", "C"]));
    assert_eq!(ranking.fields["relevance"], json!([0, 2, 1]));
    assert_eq!(score("ndcg", ranking, "B,C,A"), 1.0);
    let worst = (2.0 / 4.0f64.log2() + 1.0 / 3.0f64.log2()) / (2.0 + 1.0 / 3.0f64.log2());
    assert!((score("ndcg", ranking, "A, C, B") - worst).abs() < 1e-12);
    for (response, hit) in [("B", 1.0), ("A, b", 1.0), ("C", 0.0), ("2", 0.0)] {
        assert_eq!(score("hit-rate", next, response), hit, "{response}");
    }
    assert_eq!((score("accuracy", next, "B"), score("accuracy", sentiment, "B")), (1.0, 0.0));
    assert!(sentiment.fields.get("items").is_none() && sentiment.fields.get("labels").is_none());
    let rows = r#"[{"task": "Query_Product_Ranking", "instruction": "Rank.", "output": "first"}]"#;
    let error = shopping::read_ecinstruct(written(rows).path(), Fail).unwrap_err().to_string();
    assert!(error.contains(":1: `output` is first, expected letters"), "{error}");

    let rows = "{\"input_field\": \"Find them.\", \"target_field\": [3, 7]}\n\
                {\"input_field\": \"Rank them.\", \"target_field\": [0.1, 1.0, 0.0]}\n\
                {\"input_field\": \"Name them.\", \"target_field\": [\"Acme\", \"boat\"]}\n";
    let read = shopping::read_mmlu(written(rows).path(), Fail).unwrap().rows;
    assert_eq!(score("hit-rate", &read[0], "7, 1, 2, 3"), 0.5);
    assert_eq!(score("ndcg", &read[1], "2, 1, 3"), 1.0);
    assert_eq!(score("micro-f1", &read[2], &read[2].references[0]), 1.0);
}

#[test]
fn a_run_can_name_every_published_layout() {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/soup-tiny/base");
    let base = Base::open(&base).unwrap();
    for (format, file) in [
        ("scitldr", "scitldr.jsonl"),
        ("qa-feedback", "qa_feedback.jsonl"),
        ("hh-rlhf", "hh_rlhf.jsonl"),
        ("tldr", "tldr.jsonl"),
        ("alce", "alce.json"),
        ("ecinstruct", "ecinstruct.json"),
        ("shopping-mmlu", "mmlu.jsonl"),
        ("shopping-mmlu-choices", "mmlu_choices.csv"),
    ] {
        let config = format!("format = \"{format}\"\ntrain = \"{file}\"");
        let config: DataConfig = toml::from_str(&config).unwrap();
        let (prompts, _) = base.prompts(&config, &fixture(file)).unwrap();
        assert!(!prompts.is_empty(), "{format}");
    }
}

#[test]
fn any_jsonl_with_a_template() {
    let columns = Columns {
        prompt: "Q: {{ q | upper }}".into(),
        reference: Some("good".into()),
        id: Some("key".into()),
    };
    let read = general::read(&fixture("general.jsonl"), &columns, Fail).unwrap().rows;
    assert_eq!(read[0].prompt(), "Q: WHY?");
    assert_eq!(read[0].references, ["Because.", "So."]);
    assert_eq!((read[1].id.as_str(), read[1].references.as_slice()), ("2", &["Thus.".into()][..]));
    let missing = Columns { prompt: "{{ nothing }}".into(), reference: None, id: None };
    let error = general::read(&fixture("general.jsonl"), &missing, Fail).unwrap_err().to_string();
    assert!(error.contains("general.jsonl:1: ") && error.contains("undefined"), "{error}");
    let broken = Columns { prompt: "{% if".into(), reference: None, id: None };
    let error = general::read(&fixture("general.jsonl"), &broken, Fail).unwrap_err();
    assert!(matches!(error, DataError::Template(_)));
}

#[test]
fn a_template_wraps_the_last_turn_of_the_person() {
    let example = scitldr::read(&fixture("scitldr.jsonl"), Fail).unwrap().rows.remove(1);
    let template = PromptTemplate::new("{{ fields.title }}\n{{ prompt }}\nTL;DR:").unwrap();
    let wrapped = template.apply(&example).unwrap();
    assert_eq!(wrapped.prompt(), "On Kites\nKites fall.\nTL;DR:");
    assert_eq!(wrapped.references, example.references);
    let endless = "{% for a in range(90000) %}{% for b in range(90000) %}x{% endfor %}{% endfor %}";
    assert!(PromptTemplate::new(endless).unwrap().apply(&example).is_err());
}

#[test]
fn malformed_rows_are_named_by_line_all_of_them() {
    let file = written(
        "{\"chosen\": \"\\n\\nHuman: a\\n\\nAssistant: b\", \"rejected\": \"\\n\\nHuman: a\\n\\nAssistant: c\"}\n\
         {\"chosen\": 3}\n\n\
         {\"chosen\": \"\\n\\nHuman: a\\n\\nAssistant: b\", \"rejected\": \"\\n\\nHuman: z\\n\\nAssistant: c\"}\n",
    );
    let path = file.path().display();
    let error = hh_rlhf::read(file.path(), Fail).unwrap_err().to_string();
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines.len(), 2, "{error}");
    assert!(lines[0].starts_with(&format!("{path}:2: invalid type: integer `3`")), "{error}");
    assert_eq!(lines[1], format!("{path}:4: chosen and rejected answer different dialogues"));
    let read = hh_rlhf::read(file.path(), Skip).unwrap();
    assert_eq!((read.rows.len(), read.skipped.len()), (1, 2));
    assert_eq!(read.skipped[1].line, 4);
}

#[test]
fn each_format_refuses_what_it_cannot_mean() {
    let reason = |error: DataError| error.to_string().rsplit_once(": ").unwrap().1.to_string();
    let span = std::fs::read_to_string(fixture("qa_feedback.jsonl"))
        .unwrap()
        .replace("\"end\": 30", "\"end\": 31");
    let error = qa_feedback::read(written(&span).path(), Fail).unwrap_err();
    assert_eq!(reason(error), "span 20..31 lies outside a prediction of 30 characters");
    let csv = written("question,choices,answer\nq,\"['a', 'b']\",2\n");
    let error = shopping::read_mmlu_choices(csv.path(), Fail).unwrap_err();
    assert_eq!(reason(error), "`answer` is 2, there are 2 choices");
    let empty = written("{\"source\": [\" \"], \"target\": [\"x\"], \"paper_id\": \"p\"}");
    assert_eq!(reason(scitldr::read(empty.path(), Fail).unwrap_err()), "`source` is empty");
    let nothing = scitldr::read(written("\n\n").path(), Fail).unwrap_err();
    assert!(matches!(nothing, DataError::Empty { .. }));
    let missing = scitldr::read(Path::new("/nowhere/x.jsonl"), Fail).unwrap_err();
    assert!(missing.to_string().starts_with("/nowhere/x.jsonl: "), "{missing}");
}

#[test]
fn a_row_keeps_its_part_when_others_come() {
    let ids = |n: usize| (0..n).map(|i| format!("row-{i}")).collect::<Vec<_>>();
    let parts = |n: usize, seed| split(ids(n), |id| id, &[0.8, 0.1], seed).unwrap();
    let (few, many) = (parts(500, 7), parts(1000, 7));
    for (few, many) in few.iter().zip(&many) {
        assert!(few.iter().all(|id| many.contains(id)));
    }
    assert_eq!(parts(1000, 7), many);
    assert_ne!(parts(1000, 8), many);
    let sizes: Vec<usize> = many.iter().map(Vec::len).collect();
    assert!((760..840).contains(&sizes[0]) && (70..130).contains(&sizes[1]), "{sizes:?}");
    assert!(many[0].iter().all(|id| !many[1].contains(id)));
    assert!(split(ids(3), |id| id, &[0.8, 0.3], 0).is_err());
    assert!(split(ids(3), |id| id, &[1.0, 0.0], 0).is_err());
}

/// 40 rows with a question each.
fn questions() -> String {
    (0..40).map(|row| format!("{{\"q\": \"What is {row}?\"}}\n")).collect()
}

/// A run of the tiny base on rows of questions; `data` are further lines of its `[data]`.
fn opened(directory: &Path, rows: &str, data: &str) -> Result<Run, RunError> {
    std::fs::write(directory.join("rows.jsonl"), rows).unwrap();
    let objective = |name: &str| {
        format!("[[objectives]]\nname = \"{name}\"\nreward = {{ kind = \"readability\" }}\n")
    };
    let data = format!(
        "[data]\nformat = \"jsonl\"\ntemplate = \"{{{{ q }}}}\"\ntrain = \"rows.jsonl\"\n{data}\n"
    );
    let text = format!("name = \"x\"\nbase = \"y\"\n{}{}{data}", objective("a"), objective("b"));
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/soup-tiny/base");
    let places = Places { run: directory.join("run"), data: directory.into(), base };
    Run::open(toml::from_str(&text).unwrap(), places)
}

#[test]
fn one_file_is_split_into_rows_that_train_validate_and_test() {
    let directory = tempfile::tempdir().unwrap();
    let run = opened(directory.path(), &questions(), "split = [0.6, 0.2, 0.2]").unwrap();
    let parts = [&run.train, &run.validation, &run.test];
    let mut ids: Vec<&str> =
        parts.iter().flat_map(|p| p.iter().map(|p| p.example.id.as_str())).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 40);
    assert_eq!(parts.map(|p| p.len()).iter().sum::<usize>(), 40);
    assert!(run.train.len() > run.test.len());
    let refused =
        |data: &str| opened(directory.path(), &questions(), data).err().unwrap().to_string();
    let error = refused("split = [0.6, 0.2, 0.2]\ntest = \"rows.jsonl\"");
    assert!(error.contains("data.split") && error.contains("left out"), "{error}");
    for shares in ["[0.6, 0.4, 0.2]", "[0.9, 0.0, 0.1]", "[0.8, 1e-6, 0.1]"] {
        let error = refused(&format!("split = {shares}"));
        assert!(error.contains("data.split") && error.contains("of 40 rows"), "{error}");
    }
}

/// What is logged while it is the log of this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_run_refuses_malformed_rows_or_leaves_them_out_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let rows = format!("{{\"q\": \"Why?\"}}\n{{\"question\": 3}}\n{}{{\n", questions());
    let refused =
        |rows: &str, data: &str| opened(directory.path(), rows, data).err().unwrap().to_string();
    for data in ["", "malformed = \"fail\""] {
        let error = refused(&rows, data);
        let lines: Vec<&str> = error.lines().collect();
        assert_eq!(lines.len(), 2, "{error}");
        assert!(lines[0].contains("rows.jsonl:2: ") && lines[1].contains("rows.jsonl:43: "));
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let run = tracing::subscriber::with_default(subscriber, || {
        opened(directory.path(), &rows, "malformed = \"skip\"").unwrap()
    });
    assert_eq!(run.train.len(), 41);
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warnings.len(), 3, "{log}");
    assert!(warnings[0].contains("rows.jsonl:2: ") && warnings[1].contains("rows.jsonl:43: "));
    assert!(warnings[2].ends_with("rows.jsonl: 2 malformed rows left out"), "{log}");
    // Without one good row there is nothing to go on with.
    let error = refused("{\n", "malformed = \"skip\"");
    assert!(error.contains("rows.jsonl:1: "), "{error}");
}

#[test]
#[ignore = "needs the data sets: LADLE_DATA names the folder of scitldr/, qa_feedback/, hh_rlhf/"]
fn the_published_files_are_read_whole() {
    let data = std::env::var_os("LADLE_DATA").map(PathBuf::from).expect("LADLE_DATA is a folder");
    for part in ["train", "dev", "test"] {
        let path = data.join("scitldr").join(format!("{part}.jsonl"));
        let read = scitldr::read(&path, Fail).unwrap().rows;
        assert!(read.len() > 300);
        let has = |e: &Example| !e.references.is_empty() && e.fields.contains_key("title");
        assert!(read.iter().all(has));
    }
    let feedback = qa_feedback::read(&data.join("qa_feedback/feedback.jsonl"), Fail).unwrap().rows;
    assert_eq!(feedback.len(), 400);
    assert_eq!(feedback.iter().map(|f| f.errors.len()).sum::<usize>(), 1110);
    let pairs = hh_rlhf::read(&data.join("hh_rlhf/harmless_pairs.jsonl"), Skip).unwrap();
    assert_eq!(pairs.rows.len() + pairs.skipped.len(), 2000);
    assert!(pairs.skipped.len() < 20, "{:?}", &pairs.skipped[..5]);
}
