//! Rewards against their reference implementations (`tests/reference/training_rewards.py`) and by
//! the behaviour that a run relies on.

mod support;

use ladle_training::rewards::{
    Range, Reward, RewardError, RewardSet, Sample, SpanScore,
    citation::{CitationScore, judge, words_entail},
    classifier::{SequenceClassifier, TokenClassifier},
    embedding::{SentenceEncoder, cosine},
    labels::{
        Confusion, Gain, accuracy, auc, given, hit_rate, listed, listed_items, listed_numbers, ndcg,
    },
    overlap::{bleu_4, exact_match_recall, rouge_l, tokens_13a},
    porter, registry,
    segment::{sentences, sub_sentences},
    spec::RewardSpec,
    style::{flesch_reading_ease, plain_words},
    words::syllables,
};
use serde_json::{Value, json};

use support::{numbers, path, reference};

fn strings(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_string()).collect()
}

#[track_caller]
fn close(got: f64, expected: &Value, tolerance: f64, what: &str) {
    let expected = expected.as_f64().unwrap();
    assert!((got - expected).abs() <= tolerance, "{what}: got {got}, expected {expected}");
}

fn sample(response: &str) -> Sample {
    Sample { response: response.into(), finished: true, ..Sample::default() }
}

fn build(toml: &str) -> Result<Box<dyn Reward>, RewardError> {
    registry::build("it", toml::from_str(toml).unwrap())
}

fn score(toml: &str, sample: &Sample) -> f64 {
    build(toml).unwrap().score(std::slice::from_ref(sample)).unwrap()[0]
}

#[test]
fn stems_equal_nltk() {
    for (word, stem) in reference("rewards.json")["stems"].as_object().unwrap() {
        assert_eq!(porter::stem(word), stem.as_str().unwrap(), "{word}");
    }
}

#[test]
fn tokens_equal_sacrebleu() {
    for case in reference("rewards.json")["tokens_13a"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokens_13a(text.trim_end()), strings(&case["tokens"]), "{text}");
    }
}

#[test]
fn rouge_and_bleu_equal_their_references() {
    for case in reference("rewards.json")["overlap"].as_array().unwrap() {
        let candidate = case["candidate"].as_str().unwrap();
        let references = strings(&case["references"]);
        let first = &references[0];
        close(rouge_l(candidate, first, false), &case["rouge_l"], 1e-9, candidate);
        close(rouge_l(candidate, first, true), &case["rouge_l_stem"], 1e-9, candidate);
        close(bleu_4(candidate, &references, false), &case["bleu_4"], 1e-9, candidate);
        close(bleu_4(candidate, &references, true), &case["bleu_4_lower"], 1e-9, candidate);
    }
}

#[test]
fn ndcg_equals_scikit_learn_with_both_gains_and_partial_rankings() {
    for case in reference("rewards.json")["ranking"].as_array().unwrap() {
        let ranking: Vec<usize> = numbers(&case["ranking"]).iter().map(|x| *x as usize).collect();
        let grades = numbers(&case["grades"]);
        close(ndcg(&ranking, &grades, Gain::Linear), &case["linear"], 1e-9, "linear");
        let exponential = ndcg(&ranking, &grades, Gain::Exponential);
        close(exponential, &case["exponential"], 1e-9, "exponential");
    }
}

#[test]
fn repeating_the_best_item_gains_nothing() {
    let grades = [3.0, 2.0, 1.0];
    assert_eq!(ndcg(&[1, 1, 1], &grades, Gain::Linear), ndcg(&[1], &grades, Gain::Linear));
    assert_eq!(ndcg(&[9, 0, 1, 2, 3], &grades, Gain::Linear), 1.0);
}

#[test]
fn micro_f1_equals_scikit_learn() {
    let labels = &reference("rewards.json")["labels"];
    let rows = labels["truth"].as_array().unwrap().iter().zip(labels["given"].as_array().unwrap());
    let each: Vec<Confusion> = rows.map(|(t, g)| Confusion::of(&strings(g), &strings(t))).collect();
    let total = each.iter().fold(Confusion::default(), |a, b| a + *b);
    close(total.f1(), &labels["micro_f1"], 1e-12, "micro");
    let mean = each.iter().map(|c| c.f1()).sum::<f64>() / each.len() as f64;
    close(mean, &labels["each"], 1e-12, "mean of samples");
}

#[test]
fn auc_equals_scikit_learn_with_ties() {
    for case in reference("rewards.json")["auc"].as_array().unwrap() {
        let positive: Vec<bool> =
            case["positive"].as_array().unwrap().iter().map(|p| p.as_bool().unwrap()).collect();
        close(auc(&numbers(&case["scores"]), &positive), &case["auc"], 1e-12, "auc");
    }
    assert_eq!(auc(&[1.0, 2.0], &[true, true]), 0.5);
}

#[test]
fn answers_are_read_from_lists() {
    assert_eq!(listed("\n Red, blue ,,RED\nignored"), ["red", "blue"]);
    assert_eq!(listed_numbers("3, 1, x, 2"), [3, 1, 2]);
    let items = ["A", "B", "C"].map(String::from);
    assert_eq!(listed_items("C, a, Z, B", &items), [3, 1, 2]);
    // A JSON list: texts, and objects whose keys stand in any order.
    let object = r#"[{"value": "Red", "attribute": "Colour"}, "x", "X"]"#;
    assert_eq!(given(object), [r#"{"attribute":"colour","value":"red"}"#, "x"]);
    assert_eq!(given("Red, blue"), ["red", "blue"]);
    assert_eq!(hit_rate(&[3, 1, 2, 4], &[1, 4], 3), 0.5);
    assert_eq!(accuracy(" B. because", "b"), 1.0);
    assert_eq!(accuracy("10", "1"), 0.0);
}

#[test]
fn exact_match_recall_counts_answered_questions() {
    let questions = vec![vec!["The Beatles".into(), "Fab Four".into()], vec!["1969".into()]];
    assert_eq!(exact_match_recall("It was the beatles!", &questions), 0.5);
    let mut asked = sample("In 1969.");
    asked.fields = json!({"qa_pairs": [{"short_answers": ["1969"]}, {"short_answers": ["x y"]}]})
        .as_object()
        .cloned()
        .unwrap();
    assert_eq!(score(r#"kind = "exact-match-recall""#, &asked), 0.5);
}

#[test]
fn citations_are_judged_as_in_alce() {
    let documents = ["Cats sleep a lot.", "Dogs bark loudly.", "Cats sleep and dogs bark."];
    let supports = |premise: &str, claim: &str| Ok(words_entail(premise, claim, 1.0));
    let judged = |text: &str| judge(text, &documents, 3, supports).unwrap();
    let perfect = CitationScore { precision: 1.0, recall: 1.0 };
    assert_eq!(judged("Cats sleep [1]. Dogs bark [2]."), perfect);
    // Both are needed for the joint claim: neither is superfluous.
    assert_eq!(judged("Cats sleep and dogs bark [1][2]."), perfect);
    // [2] does not support "cats sleep", and [1] does without it.
    assert_eq!(judged("Cats sleep [1][2]."), CitationScore { precision: 0.5, recall: 1.0 });
    // No citation, and one that does not exist.
    let none = CitationScore { precision: 0.0, recall: 0.0 };
    assert_eq!(judged("Cats sleep. Dogs bark [7]."), none);
    assert_eq!(judged(""), none);
    let mixed = judged("Cats sleep [1]. Dogs swim [2].");
    assert_eq!(mixed, CitationScore { precision: 0.5, recall: 0.5 });
}

#[test]
fn claims_are_recalled_from_the_answer_without_its_citations() {
    let claims = json!({"claims": ["Dogs bark loudly.", "Cats sleep.", "Boats float."]});
    let fields = claims.as_object().unwrap().clone();
    let answer = |text: &str| Sample { fields: fields.clone(), ..sample(text) };
    let reward = build("kind = \"claim-recall\"\nword_share = 1.0").unwrap();
    let answers = [
        answer("Cats sleep [1]. Dogs bark [2] loudly [1][3]."),
        answer("Boats float."),
        answer("Nothing of it [1]."),
    ];
    let scores = reward.score(&answers).unwrap();
    assert_eq!(scores, [2.0 / 3.0, 1.0 / 3.0, 0.0]);
    assert_eq!(reward.range(), Range::UNIT);
    for (fields, reason) in [(json!({}), "no field `claims`"), (json!({"claims": []}), "is empty")]
    {
        let fields = fields.as_object().unwrap().clone();
        let error = reward.score(&[Sample { fields, ..sample("x") }]).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

/// The likeliest label of (answer, claim) decides, as of (documents, sentence) in citations.
#[test]
fn claims_are_recalled_by_an_entailment_model() {
    let directory = tempfile::tempdir().unwrap();
    let from = path("models/bert");
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
    }
    let config = directory.path().join("config.json");
    let mut settings: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    let labels = SequenceClassifier::open(directory.path()).unwrap().labels().to_vec();
    assert!(labels.len() > 1);
    let toml = format!("kind = \"claim-recall\"\nnli = {:?}", directory.path());
    let error = build(&toml).err().unwrap().to_string();
    assert!(error.contains("no label `entailment`"), "{error}");
    settings["id2label"]["1"] = json!("Entailment");
    std::fs::write(&config, settings.to_string()).unwrap();
    let model = SequenceClassifier::open(directory.path()).unwrap();
    let claims: Vec<String> = ["Cats sleep.", "dogs", "It is a long boat, he said.", "no", "x y"]
        .map(String::from)
        .to_vec();
    let entailed = |claim: &String| {
        let logits = model.logits([("Cats sleep a lot.", claim.as_str()).into()]).unwrap();
        logits[0].iter().all(|other| *other <= logits[0][1])
    };
    let expected = claims.iter().filter(|claim| entailed(claim)).count() as f64 / 5.0;
    let fields = json!({"claims": claims}).as_object().unwrap().clone();
    assert_eq!(
        score(&toml, &Sample { fields, ..sample("Cats sleep [1][2] a lot [3].") }),
        expected
    );
}

#[test]
fn sentences_keep_abbreviations_numbers_and_citations_together() {
    let text = "Dr. Smith (b. 1950) wrote 3.5 books [1][2]. Was it good? \"Yes!\" he said.\nEnd";
    let parts: Vec<&str> = sentences(text).into_iter().map(|r| &text[r]).collect();
    assert_eq!(
        parts,
        [
            "Dr. Smith (b. 1950) wrote 3.5 books [1][2].",
            "Was it good?",
            "\"Yes!\"",
            "he said.",
            "End"
        ]
    );
    let text = "In the first part we saw it, and in the second one we did not, no.";
    let parts: Vec<&str> = sub_sentences(text, 5).into_iter().map(|r| &text[r]).collect();
    assert_eq!(parts, ["In the first part we saw it,", "and in the second one we did not, no."]);
}

#[test]
fn brevity_saturates_and_wants_an_answer_that_ended() {
    let of = |words: usize, finished: bool| {
        let s = Sample { finished, ..sample(&vec!["word"; words].join(" ")) };
        score(r#"kind = "brevity""#, &s)
    };
    assert_eq!(
        [of(5, true), of(8, true), of(20, true), of(32, true), of(90, true)],
        [1.0, 1.0, 0.5, 0.0, 0.0]
    );
    assert_eq!([of(4, true), of(8, false)], [0.0, 0.0]);
}

#[test]
fn plain_words_and_readability_tell_plain_from_learned_text() {
    let plain = "We show a new way to make computers learn from few examples.";
    let learned = "We propose variational regularisation of overparameterised hypernetworks.";
    assert!(plain_words(plain, 5) > 0.9, "{}", plain_words(plain, 5));
    assert!(plain_words(learned, 5) < 0.5, "{}", plain_words(learned, 5));
    assert_eq!(plain_words("a good one", 5), 0.0);
    assert!(flesch_reading_ease(plain) > flesch_reading_ease(learned) + 40.0);
    // 6 words, 1 sentence, 6 syllables: 206.835 − 1.015·6 − 84.6.
    assert!((flesch_reading_ease("The cat sat on the mat.") - 116.145).abs() < 1e-9);
    let counted = ["table", "make", "jumped", "wanted", "neural", "a", "rhythm", "readability"];
    assert_eq!(counted.map(syllables), [2, 1, 1, 2, 2, 1, 1, 5]);
}

#[test]
fn form_and_sentiment() {
    let json = r#"kind = "json""#;
    assert_eq!(score(json, &sample(r#"{"a": 1}"#)), 1.0);
    assert_eq!(score(json, &sample(r#"{"a": 1"#)), 0.0);
    assert_eq!(score("kind = \"json\"\nkeys = [\"b\"]", &sample(r#"{"a": 1}"#)), 0.0);
    let full = "kind = \"regex\"\npattern = '[a-z]+|x'\nmatch = \"full\"";
    assert_eq!(score(full, &sample(" abc ")), 1.0);
    assert_eq!(score(full, &sample("abc1")), 0.0);
    let absent = "kind = \"regex\"\npattern = 'sorry'\nmatch = \"absent\"";
    assert_eq!(score(absent, &sample("I am sorry")), 0.0);
    let sentiment = r#"kind = "sentiment""#;
    assert_eq!(score(sentiment, &sample("A wonderful and useful result")), 1.0);
    assert_eq!(score(sentiment, &sample("This is not good")), -1.0);
    assert_eq!(score(sentiment, &sample("The table is here")), 0.0);
}

#[test]
fn unknown_kinds_and_keys_are_refused_by_name() {
    let error = toml::from_str::<RewardSpec>(r#"kind = "rouge-x""#).unwrap_err().to_string();
    assert!(error.contains("rouge-x") && error.contains("rouge-l"), "{error}");
    for toml in [
        "kind = \"rouge-l\"\nstems = true",
        "kind = \"brevity\"\nfull = 3\nmost = 4",
        "kind = \"readability\"\nx = 1",
        "kind = \"http\"\nurl = \"http://x\"\nretry = 1",
    ] {
        let error = toml::from_str::<RewardSpec>(toml).unwrap_err().to_string();
        assert!(error.contains("unknown field"), "{toml}: {error}");
    }
    let error = build("kind = \"regex\"\npattern = '('").err().unwrap().to_string();
    assert!(error.starts_with("reward `it`: "), "{error}");
    let unbounded = "kind = \"span-classifier\"\npath = \"x\"\nerror = 1\ngood = inf\nbad = 0.0";
    assert!(build(unbounded).err().unwrap().to_string().contains("good is inf and bad 0"));
    for kind in ["citation", "claim-recall"] {
        let unread = format!("kind = {kind:?}\nnli = \"/nowhere\"\nword_share = 0.5");
        assert!(build(&unread).err().unwrap().to_string().contains("`word_share` has no use with"));
    }
    let missing = "kind = \"sequence-classifier\"\npath = \"/nowhere\"";
    assert!(build(missing).err().unwrap().to_string().contains("/nowhere/config.json"));
}

#[test]
fn a_sample_without_what_a_reward_needs_is_named() {
    let rewards = RewardSet::new(vec![build(r#"kind = "rouge-l""#).unwrap()]);
    let with = Sample { references: vec!["a b".into()], ..sample("a b") };
    assert_eq!(rewards.score(std::slice::from_ref(&with)).unwrap(), [[Some(1.0)]]);
    let error = rewards.score(&[with, sample("the response")]).unwrap_err().to_string();
    assert_eq!(error, "reward `it` on sample 1 (response \"the response\"): no references");
}

/// A reward that answers as told.
struct Fixed(Vec<f64>);

impl Reward for Fixed {
    fn name(&self) -> &str {
        "fixed"
    }
    fn unit(&self) -> &str {
        "points"
    }
    fn range(&self) -> Range {
        Range::ANY
    }
    fn score(&self, _: &[Sample]) -> Result<Vec<f64>, RewardError> {
        Ok(self.0.clone())
    }
}

#[test]
fn nan_and_wrong_counts_stop_the_batch_with_the_sample() {
    let run = |scores: &[f64]| {
        let rewards = RewardSet::new(vec![Box::new(Fixed(scores.to_vec()))]);
        rewards.score(&[sample("first"), sample("second")])
    };
    assert_eq!(run(&[1.0, 2.0]).unwrap(), [[Some(1.0), Some(2.0)]]);
    let error = run(&[1.0, f64::NAN]).unwrap_err().to_string();
    assert!(error.contains("sample 1") && error.contains("second"), "{error}");
    let error = run(&[1.0]).unwrap_err().to_string();
    assert_eq!(error, "reward `fixed` gave 1 scores for 2 samples");
}

#[test]
fn a_reward_without_spans_pays_at_the_end_of_the_response() {
    let rewards = RewardSet::new(vec![Box::new(Fixed(vec![0.5]))]);
    let spans = rewards.spans(&[sample("héllo")]).unwrap();
    assert_eq!(spans, [[Some(vec![SpanScore { end: 6, score: 0.5 }])]]);
}

#[test]
fn classifier_logits_equal_transformers() {
    let classifiers = &reference("rewards.json")["classifiers"];
    let pairs: Vec<Vec<String>> =
        classifiers["pairs"].as_array().unwrap().iter().map(strings).collect();
    for name in ["bert", "distilbert", "roberta", "deberta-v2", "gpt2", "llama", "qwen3"] {
        let model = SequenceClassifier::open(&path("models").join(name)).unwrap();
        assert_eq!(model.labels().len(), 3);
        let inputs = pairs.iter().map(|p| (p[0].as_str(), p[1].as_str()).into());
        let got = model.logits(inputs).unwrap();
        for (row, expected) in got.iter().zip(classifiers["models"][name].as_array().unwrap()) {
            for (g, e) in row.iter().zip(expected.as_array().unwrap()) {
                close(f64::from(*g), e, 1e-4, name);
            }
        }
    }
}

#[test]
fn token_logits_equal_transformers() {
    let classifiers = &reference("rewards.json")["classifiers"];
    for name in ["bert-tokens", "deberta-v2-tokens", "gpt2-tokens", "llama-tokens"] {
        let model = TokenClassifier::open(&path("models").join(name)).unwrap();
        let pairs: Vec<Vec<String>> =
            classifiers["pairs"].as_array().unwrap().iter().map(strings).collect();
        let inputs: Vec<_> = pairs.iter().map(|p| (p[0].as_str(), p[1].as_str())).collect();
        let got = model.logits(&inputs).unwrap();
        for (tokens, expected) in got.iter().zip(classifiers["models"][name].as_array().unwrap()) {
            assert_eq!(tokens.logits.len(), expected.as_array().unwrap().len());
            for (g, e) in tokens.logits.concat().iter().zip(numbers(expected)) {
                assert!((f64::from(*g) - e).abs() < 1e-4, "{name}: {g} {e}");
            }
        }
    }
}

#[test]
fn sentence_embeddings_equal_transformers_mean_pooling() {
    let classifiers = &reference("rewards.json")["classifiers"];
    let encoder = SentenceEncoder::open(&path("models/bert-encoder")).unwrap();
    let expected = classifiers["models"]["bert-encoder"].as_array().unwrap();
    for (pair, expected) in classifiers["pairs"].as_array().unwrap().iter().zip(expected) {
        let pair = strings(pair);
        let vectors = encoder.embed(&[&pair[0], &pair[1]]).unwrap();
        close(cosine(&vectors[0], &vectors[1]), expected, 1e-4, &pair[0]);
    }
}

#[test]
#[ignore = "needs all-MiniLM-L6-v2: LADLE_MINILM names its directory"]
fn minilm_cosines_equal_transformers() {
    let dir = std::env::var_os("LADLE_MINILM").expect("LADLE_MINILM names the model's directory");
    let expected = reference("minilm.json");
    let texts = strings(&expected["texts"]);
    let encoder = SentenceEncoder::open(dir.as_ref()).unwrap();
    let vectors = encoder.embed(&texts.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    for (a, row) in vectors.iter().zip(expected["cosines"].as_array().unwrap()) {
        for (b, expected) in vectors.iter().zip(row.as_array().unwrap()) {
            close(cosine(a, b), expected, 1e-4, "cosine");
        }
    }
}

#[test]
fn a_span_classifier_pays_at_segment_ends_and_sums_to_its_score() {
    let path = path("models/bert-tokens");
    let toml =
        format!("kind = \"span-classifier\"\npath = {path:?}\nerror = 1\ngood = 0.5\nbad = -0.5");
    let reward = build(&toml).unwrap();
    let sample = Sample { prompt: "Short answer.".into(), ..sample("We ask why. Did they? Yes!") };
    let spans = reward.spans(std::slice::from_ref(&sample)).unwrap();
    let ends: Vec<usize> = spans[0].iter().map(|s| s.end).collect();
    assert_eq!(ends, [11, 21, 26]);
    assert!(spans[0].iter().all(|s| s.score.abs() == 0.5));
    let total: f64 = spans[0].iter().map(|s| s.score).sum();
    assert_eq!(reward.score(&[sample]).unwrap(), [total]);
}

#[test]
fn an_expected_verdict_lies_between_good_and_bad_by_the_errors_probability() {
    let path = path("models/llama-tokens");
    let toml = |more: &str| {
        format!(
            "kind = \"span-classifier\"\npath = {path:?}\nerror = 2\ngood = 1.0\nbad = -1.0\n{more}"
        )
    };
    let sample = Sample { prompt: "Short answer.".into(), ..sample("We ask why. Did they? Yes!") };
    let hard = build(&toml("")).unwrap().spans(std::slice::from_ref(&sample)).unwrap();
    let soft = build(&toml("verdict = \"expected\"")).unwrap();
    let soft = soft.spans(std::slice::from_ref(&sample)).unwrap();
    let model = TokenClassifier::open(&path).unwrap();
    let read = model.logits(&[(sample.prompt.as_str(), sample.response.as_str())]).unwrap();
    for (hard, soft) in hard[0].iter().zip(&soft[0]) {
        assert_eq!(hard.end, soft.end);
        let at = read[0].tokens.bytes.iter().position(|b| b.end == soft.end).unwrap();
        let odds: Vec<f64> = read[0].logits[at].iter().map(|&l| f64::from(l).exp()).collect();
        let wrong = odds[2] / odds.iter().sum::<f64>();
        assert!((soft.score - (1.0 - 2.0 * wrong)).abs() < 1e-6, "{soft:?} {wrong}");
        let likeliest = odds.iter().all(|o| *o <= odds[2]);
        assert_eq!(hard.score, if likeliest { -1.0 } else { 1.0 });
    }
}

#[test]
fn what_a_span_classifier_could_not_read_is_not_judged_good() {
    let path = path("models/bert-tokens");
    let toml =
        format!("kind = \"span-classifier\"\npath = {path:?}\nerror = 1\ngood = 1.0\nbad = 0.0");
    let reward = build(&toml).unwrap();
    assert_eq!(reward.spans(&[sample("")]).unwrap(), [[]]);
    // 80 tokens and a prompt do not fit into 64.
    let long = Sample { prompt: "Short answer.".into(), ..sample(&"We ask why. ".repeat(20)) };
    let error = reward.spans(&[long]).unwrap_err().to_string();
    assert!(error.contains("is past the model's"), "{error}");
}

#[test]
fn a_template_says_what_a_model_reads_before_the_response() {
    let path = path("models/llama");
    let toml =
        |more: &str| format!("kind = \"sequence-classifier\"\npath = {path:?}\nlabel = 0\n{more}");
    let mut asked = Sample { prompt: "Short answer.".into(), ..sample("We ask why.") };
    asked.fields = json!({"question": "Did they?"}).as_object().cloned().unwrap();
    let template = toml("template = \"{{ fields.question }} {{ prompt }}\"");
    let written = Sample { prompt: "Did they? Short answer.".into(), ..sample("We ask why.") };
    assert_eq!(score(&template, &asked), score(&toml(""), &written));
    assert_ne!(score(&template, &asked), score(&toml(""), &asked));
    let error = build(&template).unwrap().score(&[sample("no question")]).unwrap_err().to_string();
    assert!(error.contains("sample 0") && error.contains("undefined"), "{error}");
    for (more, expected) in [
        ("template = \"{% if\"", "prompt template"),
        ("template = \"x\"\nresponse_only = true", "response_only"),
    ] {
        let error = build(&toml(more)).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_checkpoint_with_an_impossible_number_of_labels_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(path("models/bert").join(name), directory.path().join(name)).unwrap();
    }
    let path = directory.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config.as_object_mut().unwrap().remove("id2label");
    for count in [0, u64::MAX] {
        config["num_labels"] = json!(count);
        std::fs::write(&path, config.to_string()).unwrap();
        let toml = format!("kind = \"sequence-classifier\"\npath = {:?}", directory.path());
        let error = build(&toml).err().unwrap().to_string();
        assert!(error.contains(&format!("{count} labels, expected 1 to")), "{error}");
    }
}
