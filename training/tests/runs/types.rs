//! Several types of task in one run: each row is judged by the rewards of its type.

use super::*;

const OBJECTIVES: &str = r#"
[[objectives]]
name = "vowels"
reward = { kind = "regex", pattern = "^ ?[aeiou]" }
[[objectives]]
name = "begins"
reward = { kind = "regex", pattern = "^ ?[aeiou]" }
[[objectives]]
name = "right"
reward = { kind = "accuracy" }
"#;

/// Questions, judged by `vowels`, and choices, judged by `begins` and by their label.
fn two_types(directory: &Path, settings: &str) -> PathBuf {
    task(directory, settings);
    let choices: String = (0..24)
        .map(|row| {
            let (choice, label) = (format!("Pick number {row}."), format!("{row}"));
            format!("{}\n", serde_json::json!({"choice": choice, "label": label}))
        })
        .collect();
    fs::write(directory.join("choices.jsonl"), choices).unwrap();
    let base = base();
    let set = |name: &str, column: &str, file: &str, rewards: &str| {
        format!(
            r#"
[[data]]
name = "{name}"
format = "jsonl"
template = "{{{{ {column} }}}}"
train = "{file}"
validation = "{file}"
test = "{file}"
rewards = {rewards}
"#
        )
    };
    let questions = set("questions", "question", "rows.jsonl", r#"["vowels"]"#);
    let choices = set("choices", "choice", "choices.jsonl", r#"["begins", "right"]"#);
    let path = directory.join("config.toml");
    let text = format!("name = \"types\"\nbase = {base:?}\n{settings}\n{questions}\n{choices}");
    fs::write(&path, text).unwrap();
    path
}

fn settings(strategy: &str, steps: u64) -> String {
    format!(
        r#"
lora = {{ rank = 4, alpha = 8.0 }}
rollout = {{ max_new_tokens = 1, slots = 32, samples = 8 }}
rl = {{ algorithm = "rloo", steps = {steps}, batch = 32, learning_rate = 2e-2, kl = 0.0, kl_target = 0.0, standardise_on = 64, checkpoint_every = 100 }}
balance = {{ strategy = "{strategy}", every = 10 }}
mixing = {{ weights = [1.0, 1.0, 1.0] }}
{OBJECTIVES}"#
    )
}

#[test]
fn one_policy_learns_several_types_of_task_by_their_own_rewards() {
    thread::scope(|scope| {
        for strategy in ["average", "inverse", "delta", "gdpo"] {
            scope.spawn(move || {
                let directory = tempfile::tempdir().unwrap();
                let config = two_types(directory.path(), &settings(strategy, 40));
                let run = directory.path().join("run");
                succeed(start(&config, &run).env("RAYON_NUM_THREADS", "1"));
                let path = run.join("metrics/policy/metrics.jsonl");
                let text = fs::read_to_string(path).unwrap();
                let steps: Vec<Value> =
                    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
                for name in ["vowels", "begins"] {
                    // Steps whose prompts were all of the other type have no value of it.
                    let all: Vec<f64> = steps
                        .iter()
                        .filter_map(|step| step[format!("reward/{name}")].as_f64())
                        .collect();
                    let last = &all[all.len() - 4..];
                    let reached = last.iter().sum::<f64>() / 4.0;
                    assert!(reached > 0.9, "{strategy}, {name}: {reached}");
                }
            });
        }
    });
}

#[test]
fn an_evaluation_judges_each_row_by_the_rewards_of_its_type() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    succeed(&mut start(&two_types(directory.path(), &settings("average", 2)), &run));
    let out = directory.path().join("out");
    let mut evaluate = command();
    evaluate.arg("evaluate").arg(&run).arg("--out").arg(&out);
    evaluate.arg("--data").arg(directory.path()).args(["--prompts", "48", "--grid", "3"]);
    succeed(&mut evaluate);
    let table = fs::read_to_string(out.join("samples.csv")).unwrap();
    let line = |row: &str| table.lines().find(|line| line.contains(row)).unwrap();
    // vowels, begins, right, then the response.
    let empty = |row: &str| -> Vec<bool> {
        line(row).split(',').skip(7).take(3).map(str::is_empty).collect()
    };
    assert_eq!(empty("\"questions/"), [false, true, true]);
    assert_eq!(empty("\"choices/"), [true, false, false]);
    let front: Value =
        serde_json::from_str(&fs::read_to_string(out.join("front.json")).unwrap()).unwrap();
    assert_eq!(front["methods"][1]["method"], "average");
    assert_eq!(front["methods"][1]["points"][0]["mean"].as_array().unwrap().len(), 3);
    // Only questions: two rewards would have nothing to say.
    let few = directory.path().join("few");
    let mut few_rows = command();
    few_rows.arg("evaluate").arg(&run).arg("--out").arg(&few);
    few_rows.arg("--data").arg(directory.path()).args(["--prompts", "1", "--grid", "3"]);
    refuse(&mut few_rows, &["data.test", "judges none of the 1 rows"]);
}

#[test]
fn types_of_task_that_nothing_judges_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    let path = two_types(directory.path(), &settings("average", 2));
    let written = fs::read_to_string(&path).unwrap();
    let cases: [(&str, &str, &[&str]); 6] = [
        (r#"["begins", "right"]"#, r#"["begins", "nobody"]"#, &["data[1].rewards", "nobody"]),
        (r#"["begins", "right"]"#, "[]", &["data[1].rewards is []", "at least one"]),
        (r#"["begins", "right"]"#, r#"["begins"]"#, &["objectives[2].name is right", "data set"]),
        ("name = \"choices\"\n", "", &["data[1].name", "a name of its own"]),
        ("name = \"choices\"\n", "name = \"questions\"\n", &["data[1].name is \"questions\""]),
        (r#"["vowels"]"#, r#"["vowels", "right"]"#, &["reward `right`", "no field `label`"]),
    ];
    for (from, to, parts) in cases {
        assert!(written.contains(from), "{from}");
        fs::write(&path, written.replacen(from, to, 1)).unwrap();
        refuse(&mut start(&path, &run), parts);
    }
    fs::write(&path, written.replacen("[[data]]", "[data]", 1)).unwrap();
    refuse(&mut start(&path, &run), &["data"]);
}
