//! RiC: one policy that its prompts tell how much of each reward is wanted.

use super::*;

/// Two rewards of which a response earns one or the other by its first token, and rows with an
/// answer of each kind: the optimum for (1, 0) is always the first kind, for (0, 1) the second.
const EITHER: &str = r#"
[[objectives]]
name = "vowels"
reward = { kind = "regex", pattern = "^ ?[aeiou]" }
[[objectives]]
name = "others"
reward = { kind = "regex", pattern = "^ ?[bst]" }
"#;

fn either(directory: &Path, settings: &str) -> PathBuf {
    let config = task(directory, &format!("{settings}\n{EITHER}"));
    let rows: String = (0..24)
        .map(|row| {
            let answers = [["a", "t"], ["o", "b"], ["i", "s"]][row % 3];
            let question = format!("What is {row} and why?");
            format!("{}\n", serde_json::json!({"question": question, "answer": answers}))
        })
        .collect();
    fs::write(directory.join("rows.jsonl"), rows).unwrap();
    config
}

fn told(seed: u64, context: &str) -> String {
    format!(
        r#"
seed = {seed}
lora = {{ rank = 8, alpha = 16.0 }}
rollout = {{ max_new_tokens = 1, slots = 32 }}
rl = {{ standardise_on = 64, checkpoint_every = 100 }}
mixing = {{ context = {{ {context} }} }}
"#
    )
}

const STAGES: &str = "steps = 300, batch = 24, learning_rate = 5e-3, online = { samples = 96, steps = 20, learning_rate = 2e-4 }";

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// At the corners the answers are the optimum's; on the way from one to the other they go over.
fn answers_follow_the_preference(seed: u64) {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let config = either(directory.path(), &told(seed, STAGES));
    let run = at("run");
    succeed(start(&config, &run).env("RAYON_NUM_THREADS", "1"));
    // A soup of one backbone that says what its prompts tell.
    let soup = Soup::open(&run.join("soup"), &OpenOptions::default()).unwrap();
    assert_eq!(soup.mixing.rows(), [[1.0]]);
    let described = &soup.manifest.objectives[0].description;
    assert!(described.contains("<rm1_score> vowels from "), "{described}");

    // Beside another method of the same rewards.
    let settings = "rollout = { max_new_tokens = 1 }\nrl = { steps = 1, batch = 4, standardise_on = 64 }\nmixing = { identity = true }\n";
    let config = either(directory.path(), &format!("seed = {seed}\n{settings}"));
    let rewarded = at("rewarded");
    succeed(&mut start(&config, &rewarded));
    let out = at("out");
    let mut evaluate = command();
    evaluate.arg("evaluate").arg(&rewarded).arg("--out").arg(&out);
    evaluate.arg("--against").arg(format!("told={}", run.display()));
    evaluate.arg("--data").arg(directory.path()).args(["--prompts", "24", "--seeds", "1,2"]);
    evaluate.args(["--preferences", "1,0;0.8,0.2;0.5,0.5;0.2,0.8;0,1"]);
    evaluate.args(["--methods", "rewarded,ric,oracle"]);
    succeed(&mut evaluate);
    let front = json(&out.join("front.json"));
    let methods = front["methods"].as_array().unwrap();
    let names: Vec<&str> = methods.iter().map(|m| m["method"].as_str().unwrap()).collect();
    assert_eq!(names, ["θ_sft", "rewarded soup", "ric"]);
    // It is no policy of one preference.
    assert_eq!(front["oracles"].as_array().unwrap().len(), 2);
    let means = |method: &Value, objective: usize| -> Vec<f64> {
        let points = method["points"].as_array().unwrap();
        points.iter().map(|point| point["mean"][objective].as_f64().unwrap()).collect()
    };
    let (vowels, others) = (means(&methods[2], 0), means(&methods[2], 1));
    let shown = format!("seed {seed}: vowels {vowels:?}, others {others:?}");
    assert!(vowels[0] > 0.8 && others[4] > 0.8, "{shown}");
    assert!(vowels[1] > vowels[3] && others[3] > others[1], "{shown}");
    assert!(means(&methods[0], 0)[0] < 0.5 && means(&methods[0], 1)[0] < 0.5, "{shown}");

    // A corner asks for the highest of its reward and the lowest of the other.
    let range: toml::Table =
        fs::read_to_string(run.join("adapters/policy/range.toml")).unwrap().parse().unwrap();
    let end = |end: &str, objective: usize| range[end][objective].as_float().unwrap();
    let expected = format!("<rm1_score> {:.1} <rm2_score> {:.1}", end("high", 0), end("low", 1));
    let answers = fs::read_to_string(out.join("answers.jsonl")).unwrap();
    let asked = answers.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let asked: Vec<String> =
        asked.filter_map(|answer| answer["told"].as_str().map(str::to_owned)).collect();
    assert_eq!(asked.len(), 5 * 24 * 2);
    assert_eq!(asked.iter().filter(|told| **told == expected).count(), 24 * 2);

    // A server of the soup, which is sent what is told, answers alike.
    let server = engine::served(&run.join("soup"));
    let answered = |out: &Path, more: &[&str]| {
        let mut evaluate = command();
        evaluate.arg("evaluate").arg(&run).arg("--out").arg(out).args(more);
        succeed(evaluate.arg("--data").arg(directory.path()).args(["--prompts", "3"]));
        fs::read_to_string(out.join("samples.csv")).unwrap()
    };
    assert_eq!(answered(&at("here"), &[]), answered(&at("there"), &["--engine", &server.url]));

    // Every prompt of the online stage asked for the highest of all rewards but one.
    for row in json(&run.join("rows/online.json")).as_array().unwrap() {
        let highest =
            |j: usize| (row["wanted"][j].as_f64().unwrap() - end("high", j)).abs() < 0.051;
        assert!(highest(0) || highest(1), "{row}");
    }
}

#[test]
fn a_policy_that_is_told_the_rewards_moves_to_the_known_optimum_of_each_preference() {
    thread::scope(|scope| {
        for seed in 1..=2 {
            scope.spawn(move || answers_follow_the_preference(seed));
        }
    });
}

#[test]
fn a_killed_run_of_told_rewards_ends_with_the_weights_of_an_undisturbed_one() {
    killed_and_whole(
        &format!(
            r#"
lora = {{ rank = 4, alpha = 8.0, dropout = 0.1 }}
sft = {{ epochs = 1, batch = 8, lora = {{ rank = 4, alpha = 8.0 }} }}
rollout = {{ max_new_tokens = 6, slots = 8 }}
rl = {{ standardise_on = 16, checkpoint_every = 2 }}
mixing = {{ context = {{ steps = 6, batch = 8, learning_rate = 1e-3, online = {{ samples = 16, steps = 5, learning_rate = 1e-3 }} }} }}
{OBJECTIVES}"#
        ),
        6,
    );
}

#[test]
fn settings_that_mean_nothing_to_told_rewards_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    let context = "mixing = { context = { steps = 1 } }";
    let cases: [(&str, &[&str]); 14] = [
        ("rl = { steps = 7 }", &["rl.steps is 7", "mixing.context"]),
        ("rl = { algorithm = \"rloo\" }", &["rl.algorithm", "left out with mixing.context"]),
        ("rl = { keep = [2] }", &["rl.keep", "left out with mixing.context"]),
        ("balance = { strategy = \"inverse\" }", &["balance.strategy", "mixing.context"]),
        ("rollout = { samples = 2 }", &["rollout.samples is 2", "1 with mixing.context"]),
        ("lora = { activation = \"answer\" }", &["lora.activation is answer", "mixing.context"]),
        ("mixing = { context = { steps = 0 } }", &["mixing.context.steps is 0", "at least 1"]),
        ("mixing = { context = { weights = [1.0] } }", &["weights", "unknown field"]),
        ("mixing = { beta = 0.6, context = { steps = 1 } }", &["mixing"]),
        ("mixing = { context = { mapping = \"max\" } }", &["max", "linf"]),
        (
            "mixing = { context = { learning_rate = 0.0 } }",
            &["context.learning_rate is 0", "above 0"],
        ),
        (
            "mixing = { context = { online = { samples = 0 } } }",
            &["online.samples is 0", "at least 1"],
        ),
        (
            "mixing = { context = { online = { quantile = 1.0 } } }",
            &["online.quantile is 1", "less than 1"],
        ),
        (
            "mixing = { context = { max_response_tokens = 1 } }\nrl = { standardise_on = 4 }\nrollout = { max_new_tokens = 1 }",
            &["max_response_tokens is 1", "answer"],
        ),
    ];
    for (settings, parts) in cases {
        let mixing = if settings.contains("mixing") { "" } else { context };
        let config = task(directory.path(), &format!("{settings}\n{mixing}\n{OBJECTIVES}"));
        refuse(&mut start(&config, &run), parts);
    }
    fs::remove_dir_all(&run).unwrap();
    // 256 positions, of which the words behind the longest prompt take some.
    let long = format!("rollout = {{ max_new_tokens = 230 }}\n{context}\n{OBJECTIVES}");
    refuse(&mut start(&task(directory.path(), &long), &run), &["rollout.max_new_tokens is 230"]);
    let several = format!("{context}\n{OBJECTIVES}");
    let config = task(directory.path(), &several);
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}rewards = [\"short\"]\n")).unwrap();
    refuse(&mut start(&config, &run), &["data is", "judged by all rewards"]);
    assert!(!run.exists());
}

#[test]
fn a_policy_that_is_told_the_rewards_is_no_soup_to_choose_from_and_weighs_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let config = task(
        directory.path(),
        &format!(
            "rollout = {{ max_new_tokens = 2 }}\nrl = {{ standardise_on = 4 }}\nmixing = {{ context = {{ steps = 1, batch = 4 }} }}\n{OBJECTIVES}"
        ),
    );
    let run = directory.path().join("run");
    let plan = succeed(start(&config, &run).arg("--dry-run"));
    assert!(plan.contains("offline") && !plan.contains("online"), "{plan}");
    succeed(&mut start(&config, &run));
    let mut select = command();
    select.arg("select-alpha").arg(&run).arg("--data").arg(directory.path());
    refuse(&mut select, &["one policy has no B"]);
    let mut serve = command();
    serve.arg("serve-rewards").arg(&config).args([
        "--backbone",
        "policy",
        "--listen",
        "127.0.0.1:0",
    ]);
    serve.arg("--share").arg(&run).arg("--data").arg(directory.path());
    refuse(&mut serve, &["mixing is context", "RiC weighs no rewards"]);
}
