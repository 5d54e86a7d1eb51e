//! Reward models taught on small made-up lessons, and read back as rewards of the registry.

use ladle_training::{
    data::{Message, Pair, Role},
    rewards::{
        Reward, Sample,
        fit::{
            Settings, fit,
            lesson::{Goal, Lesson, LessonRow, Source, has_error},
        },
        neural::{Reading, SegmentBy},
        registry,
    },
};
use safetensors::SafeTensors;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/training/models").join(name)
}

fn settings() -> Settings {
    Settings {
        epochs: 20,
        batch: 8,
        learning_rate: 3e-2,
        weight_decay: 0.0,
        test_share: 0.2,
        seed: 1,
        template: None,
        reading: Reading::Last,
    }
}

fn judged(response: &str) -> Sample {
    let (prompt, response) = ("Is 7 right?".into(), response.into());
    Sample { prompt, response, finished: true, ..Sample::default() }
}

fn reward(toml: &str) -> Box<dyn Reward> {
    registry::build("it", toml::from_str(toml).unwrap()).unwrap()
}

fn pairs(count: usize) -> Lesson {
    let pair = |row| Pair {
        id: format!("row-{row}"),
        messages: vec![Message { role: Role::User, content: format!("Is {row} right?") }],
        chosen: format!("Yes, we think that {row} is right."),
        rejected: format!("No! Why do you ask me {row} times?"),
        fields: Map::new(),
    };
    Lesson::of_pairs((0..count).map(pair).collect())
}

/// The checkpoint's class and the names of its tensors.
fn written(directory: &Path) -> (String, Vec<String>) {
    let config = std::fs::read(directory.join("config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    let bytes = std::fs::read(directory.join("model.safetensors")).unwrap();
    let mut names: Vec<String> =
        SafeTensors::deserialize(&bytes).unwrap().names().into_iter().map(Into::into).collect();
    names.sort();
    (config["architectures"][0].as_str().unwrap().into(), names)
}

#[test]
fn preferences_teach_encoders_and_language_models() {
    for (base, class, head) in [
        ("bert-encoder", "BertForSequenceClassification", "classifier.bias"),
        ("llama", "LlamaForSequenceClassification", "score.weight"),
        ("gpt2-tokens", "GPT2ForSequenceClassification", "score.weight"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let report = fit(pairs(60), &model(base), directory.path(), &settings()).unwrap();
        assert!(report.tested >= 5 && report.trained + report.tested < 60, "{base}: {report:?}");
        assert!((1..=20).contains(&report.epochs), "{base}: {report:?}");
        assert!(report.accuracy > 0.9 && report.loss < 0.5, "{base}: {report:?}");
        let (got, names) = written(directory.path());
        assert_eq!(got, class);
        assert!(names.iter().any(|name| name == head), "{base}: {names:?}");
        let toml = format!("kind = \"sequence-classifier\"\npath = {:?}", directory.path());
        let samples = [judged("Yes, we think that 7 is right."), judged("No! Why do you ask?")];
        let scores = reward(&toml).score(&samples).unwrap();
        assert!(scores[0] > scores[1], "{base}: {scores:?}");
    }
}

#[test]
fn marked_errors_teach_a_span_classifier() {
    let row = |row: usize| {
        // Every third answer has an error in its first sentence, every fourth in its second.
        let sentences = [
            if row.is_multiple_of(3) {
                "No, the model is wrong."
            } else {
                "Yes, the model is right."
            },
            if row.is_multiple_of(4) { "We say no." } else { "We say yes." },
        ];
        let response = sentences.join(" ");
        let starts = [0, sentences[0].len() + 1];
        let wrong = sentences.iter().zip(starts).filter(|(s, _)| s.to_lowercase().contains("no"));
        LessonRow {
            id: format!("row-{row}"),
            marked: wrong.map(|(s, start)| start..start + s.len()).collect(),
            samples: vec![judged(&response)],
        }
    };
    let goal = Goal::Error { name: "untrue", segment: SegmentBy::Sentence };
    for (base, class, reading) in [
        ("bert", "BertForTokenClassification", Reading::Mean),
        ("llama", "LlamaForTokenClassification", Reading::Last),
        ("gpt2", "GPT2ForTokenClassification", Reading::Last),
    ] {
        let lesson = Lesson { goal: goal.clone(), rows: (0..90).map(row).collect() };
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings { reading, ..settings() };
        let report = fit(lesson, &model(base), directory.path(), &settings).unwrap();
        assert!(report.auc > 0.95 && report.accuracy > report.guessing, "{base}: {report:?}");
        let (got, names) = written(directory.path());
        assert_eq!(got, class);
        // The sequence head and the pooler of the checkpoint that was taken are gone.
        assert!(!names.iter().any(|name| name.contains("pooler")), "{names:?}");
        assert_eq!(
            names
                .iter()
                .filter(|name| name.starts_with("score") || name.starts_with("classifier"))
                .count(),
            2
        );
        let toml = format!(
            "kind = \"span-classifier\"\npath = {:?}\nerror = \"untrue\"\ngood = 0.5\nbad = -0.5\nreading = {:?}",
            directory.path(),
            format!("{reading:?}").to_lowercase()
        );
        let spans = reward(&toml).spans(&[judged("Yes, the model is right. We say no.")]).unwrap();
        let scores: Vec<f64> = spans[0].iter().map(|span| span.score).collect();
        assert_eq!(scores, [0.5, -0.5], "{base}");
    }
}

#[test]
fn lessons_that_teach_nothing_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let few = fit(pairs(4), &model("llama"), directory.path(), &settings()).unwrap_err();
    assert!(few.to_string().starts_with("4 rows"), "{few}");
    let goal = Goal::Error { name: "untrue", segment: SegmentBy::Sentence };
    let row =
        |row| LessonRow { id: format!("{row}"), samples: vec![judged("Yes.")], marked: vec![] };
    let lesson = Lesson { goal, rows: (0..40).map(row).collect() };
    let one = fit(lesson, &model("llama"), directory.path(), &settings()).unwrap_err();
    assert!(one.to_string().contains("only one of the two labels"), "{one}");
    let template = Settings { template: Some("{{ fields.question }}".into()), ..settings() };
    let missing = fit(pairs(20), &model("llama"), directory.path(), &template).unwrap_err();
    assert!(missing.to_string().starts_with("row row-"), "{missing}");
    let mut alike = pairs(40);
    for row in &mut alike.rows {
        row.samples[1] = row.samples[0].clone();
    }
    let nothing = fit(alike, &model("llama"), directory.path(), &settings()).unwrap_err();
    assert!(nothing.to_string().contains("none of 20 epochs lowered the loss"), "{nothing}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    let nowhere = fit(pairs(20), Path::new("/nowhere"), directory.path(), &settings());
    assert!(nowhere.unwrap_err().to_string().contains("/nowhere/config.json"));
}

#[test]
fn what_cannot_be_taught_is_said_before_anything_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let share = Settings { test_share: 0.5, ..settings() };
    let error = fit(pairs(20), &model("llama"), directory.path(), &share).unwrap_err().to_string();
    assert!(error.starts_with("test_share is 0.5, expected"), "{error}");
    // The Llama family opens sharded, but a head is written next to one file only.
    let sharded = tempfile::tempdir().unwrap();
    let shard = "model-00001-of-00001.safetensors";
    for (from, to) in [
        ("config.json", "config.json"),
        ("tokenizer.json", "tokenizer.json"),
        ("model.safetensors", shard),
    ] {
        std::fs::copy(model("llama").join(from), sharded.path().join(to)).unwrap();
    }
    let bytes = std::fs::read(sharded.path().join(shard)).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let names = stored.names().into_iter();
    let map: Map<String, Value> = names.map(|name| (name.into(), shard.into())).collect();
    let index = serde_json::json!({ "weight_map": map }).to_string();
    std::fs::write(sharded.path().join("model.safetensors.index.json"), index).unwrap();
    // One of its texts cannot be made, so reading them first would be another error.
    let unread = Settings { template: Some("{{ fields.question }}".into()), ..settings() };
    let error = fit(pairs(20), sharded.path(), directory.path(), &unread).unwrap_err().to_string();
    assert!(error.contains("model.safetensors") && error.contains("sharded"), "{error}");
}

#[test]
fn qa_feedback_holds_four_lessons() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/training/data");
    let read = |source: Source| source.read(&data.join("qa_feedback.jsonl")).unwrap();
    let texts =
        |row: &LessonRow| row.samples.iter().map(|s| s.response.clone()).collect::<Vec<_>>();
    let preferences = read(Source::QaPreference);
    assert_eq!(preferences.rows.len(), 5);
    assert_eq!(texts(&preferences.rows[2]), ["Ann.", "Bob did."]);
    assert_eq!(preferences.rows[2].samples[0].fields["question"], "Who built the naïve boat?");
    let complete = read(Source::QaCompleteness);
    assert_eq!(texts(&complete.rows[0]), ["Ann built it.", "Élan: Ann built it. It floats."]);
    let marked = |source| {
        let Lesson { goal, rows } = read(source);
        let Goal::Error { segment, .. } = goal else { panic!("{goal:?}") };
        let response = rows[0].samples[0].response.clone();
        let wrong = segment.of(&response).into_iter().filter(|s| has_error(s, &rows[0].marked));
        wrong.map(|s| response[s].to_string()).collect::<Vec<_>>()
    };
    assert_eq!(marked(Source::QaFactuality), ["It floats."]);
    // The mark covers all of "Élan:", which is a part of the first sub-sentence.
    assert_eq!(marked(Source::QaRelevance), ["Élan: Ann built it."]);
}

#[test]
fn a_mark_that_runs_over_by_a_character_marks_no_neighbour() {
    let marked = std::iter::once(0..21).collect::<Vec<_>>();
    assert!(has_error(&(0..20), &marked));
    assert!(!has_error(&(20..40), &marked));
    // A marked word marks its sentence.
    assert!(has_error(&(0..20), &std::iter::once(5..8).collect::<Vec<_>>()));
    assert!(!has_error(&(0..20), &[]));
}
