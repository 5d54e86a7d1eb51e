//! Evaluations of finished runs.

use ladle::preference::{Alpha, Front, LambdaRule, Menu, Preference};

use super::*;

#[test]
fn an_evaluation_compares_methods_and_goes_on_where_it_was_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let run = |name: &str, mixing: &str| {
        let settings = format!(
            r#"
lora = {{ rank = 2, alpha = 4.0 }}
rollout = {{ max_new_tokens = 6 }}
rl = {{ steps = 2, batch = 8, minibatch = 8, epochs = 1, learning_rate = 5e-2, standardise_on = 4 }}
mixing = {{ {mixing} }}
{OBJECTIVES}"#
        );
        let out = directory.path().join(name);
        succeed(&mut start(&task(directory.path(), &settings), &out));
        out
    };
    let (bone, rewarded) = (run("bone", "beta = 0.7"), run("rewarded", "identity = true"));
    let evaluate = |out: &Path| {
        let mut command = command();
        command.arg("evaluate").arg(&bone).arg("--against").arg(&rewarded).arg("--out").arg(out);
        command.arg("--data").arg(directory.path()).args(["--prompts", "5", "--grid", "4"]);
        command.args(["--alphas", "0,0.5"]);
        command
    };
    let whole = directory.path().join("whole");
    succeed(&mut evaluate(&whole));
    let read = |out: &Path, name: &str| fs::read_to_string(out.join(name)).unwrap();
    let front: Value = serde_json::from_str(&read(&whole, "front.json")).unwrap();
    let methods: Vec<&str> = front["methods"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["method"].as_str().unwrap())
        .collect();
    let at_zero: Vec<&str> = methods.iter().copied().filter(|m| !m.contains(", α")).collect();
    let expected = [
        "θ_sft",
        "bone soup (nominal)",
        "bone soup (realised)",
        "aba",
        "bone soup (clamped)",
        "mod on bone backbones",
        "rewarded soup",
        "mod",
    ];
    assert_eq!(at_zero, expected);
    // α is chosen on validation rows, and reported beside 0 where it is another.
    for selected in front["selected"].as_array().unwrap() {
        let (name, best) =
            (selected["method"].as_str().unwrap(), selected["best"].as_f64().unwrap());
        assert_eq!(selected["scores"].as_array().unwrap().len(), 2);
        let twin = format!("{name}, α = {best}");
        assert_eq!(methods.contains(&twin.as_str()), best != 0.0, "{twin}");
    }
    assert_eq!(front["selected"].as_array().unwrap().len(), 5);
    let method = |name: &str| {
        let all = front["methods"].as_array().unwrap();
        all.iter().find(|method| method["method"] == name).unwrap()
    };
    // θ_sft is at 0 nats from itself, by two kernels.
    let kl = method("θ_sft")["points"][0]["kl"].as_f64().unwrap();
    assert!(kl.abs() < 0.05, "{kl}");
    assert_eq!(method("bone soup (clamped)")["points"][0]["lambda"], serde_json::json!([1.0, 0.0]));
    // At its own column Bone Soup is the backbone that was trained for it.
    let oracles = front["oracles"].as_array().unwrap();
    let names: Vec<&str> = oracles.iter().map(|o| o["name"].as_str().unwrap()).collect();
    let label = rewarded.display().to_string();
    assert_eq!(names[..2], ["short", "plain"]);
    assert_eq!(names[2..], [format!("short of {label}"), format!("plain of {label}")]);
    assert_eq!(oracles[0]["gaps"][0], serde_json::json!(["bone soup (nominal)", 0.0]));
    assert!(method("bone soup (nominal)")["oracle_gap"].is_number());
    assert_eq!(method("bone soup (nominal)")["gain"]["over"], "rewarded soup");
    assert!(!method("rewarded soup")["verdicts"].as_array().unwrap().is_empty());
    let means: Vec<f64> = front["objectives"]
        .as_array()
        .unwrap()
        .iter()
        .map(|o| o["mean"].as_f64().unwrap())
        .collect();
    let stds: Vec<f64> = front["objectives"]
        .as_array()
        .unwrap()
        .iter()
        .map(|o| o["std"].as_f64().unwrap())
        .collect();
    for (j, reference) in front["reference_point"].as_array().unwrap().iter().enumerate() {
        assert!((reference.as_f64().unwrap() - (means[j] - 0.5 * stds[j])).abs() < 1e-12);
    }
    assert_eq!(front["prompts"], 5);
    for method in front["methods"].as_array().unwrap() {
        assert_eq!(method["points"].as_array().unwrap().len(), 5);
        assert!(method["metrics"]["hypervolume"].as_f64().unwrap() >= 0.0);
    }
    // With constant weights the realised B is the nominal one.
    assert_eq!(method("bone soup (nominal)")["points"], method("bone soup (realised)")["points"]);
    let table = read(&whole, "samples.csv");
    assert!(table.starts_with("method,mu:short,mu:plain,row,seed,finished,reward:short"));
    assert_eq!(table.matches("\"rewarded soup\"").count(), 25);
    let page = read(&whole, "report.html");
    assert!(page.contains("<svg") && page.contains("rewarded soup") && !page.contains("http"));

    // A corner's KL is compared with its backbone's whether or not oracles are asked for.
    let alone = directory.path().join("alone");
    succeed(evaluate(&alone).args(["--methods", "bone"]));
    let bones: Value = serde_json::from_str(&read(&alone, "front.json")).unwrap();
    assert_eq!(bones["methods"][1]["verdicts"], method("bone soup (nominal)")["verdicts"]);

    // Every α on the test rows: what a server of these weights predicts between.
    let every = directory.path().join("every");
    succeed(evaluate(&every).args(["--methods", "clamped", "--every-alpha"]));
    let measured: Value = serde_json::from_str(&read(&every, "front.json")).unwrap();
    let alphas: Vec<&Value> =
        measured["methods"].as_array().unwrap().iter().map(|m| &m["alpha"]).collect();
    assert_eq!(alphas, [0.0, 0.0, 0.5]);
    assert_eq!(measured["selected"], serde_json::json!([]));
    let soup = Soup::open(&bone.join("soup"), &OpenOptions::default()).unwrap();
    assert_eq!(measured["sha256"], serde_json::json!(soup.manifest.weights()));
    let menu = soup.manifest.menu().unwrap();
    assert!(
        Front::read(Some(&measured), &menu, &soup.mixing).is_err(),
        "the soup solves λ exactly"
    );
    let clamped = Menu { default_rule: LambdaRule::Clamp, ..menu };
    let read_front = Front::read(Some(&measured), &clamped, &soup.mixing).unwrap();
    let preference = Preference::new(&[0.5, 0.5], 2).unwrap();
    let solved = soup.mixing.solve_by(LambdaRule::Clamp, &preference, &Alpha::Scalar(0.25));
    assert!(read_front.predict(&solved).unwrap().iter().all(|one| one.value.is_finite()));

    // Half of the answers and a line cut short, as a kill leaves them.
    let stopped = directory.path().join("stopped");
    fs::create_dir(&stopped).unwrap();
    fs::copy(whole.join("evaluation.toml"), stopped.join("evaluation.toml")).unwrap();
    let answers = fs::read(whole.join("answers.jsonl")).unwrap();
    fs::write(stopped.join("answers.jsonl"), &answers[..answers.len() / 2]).unwrap();
    succeed(&mut evaluate(&stopped));
    assert_eq!(read(&whole, "front.json"), read(&stopped, "front.json"));
    assert_eq!(read(&whole, "samples.csv"), read(&stopped, "samples.csv"));

    let unread = ["--every-alpha", "--dev-prompts", "3"];
    refuse(evaluate(&every).args(unread), &["--dev-prompts", "cannot be used with"]);
    let mut alone = command();
    alone.arg("evaluate").arg(&bone).args(["--every-alpha", "--grid", "4", "--out"]).arg(&every);
    refuse(alone.arg("--data").arg(directory.path()), &["--every-alpha: expected --alphas with"]);
    refuse(evaluate(&whole).args(["--seeds", "2"]), &["another evaluation"]);
    refuse(evaluate(&whole).args(["--methods", "bones"]), &["bones", "bone, realised"]);
    refuse(evaluate(&whole).args(["--preferences", "1,0;0,1;1,0"]), &["no preference of the grid"]);
    let unserved = ["--methods has ric", "mixing.context"];
    refuse(evaluate(&whole).args(["--methods", "bone,ric"]), &unserved);

    // Runs may join later; methods of one name are told apart by their runs.
    succeed(evaluate(&whole).arg("--against").arg(&bone));
    let front: Value = serde_json::from_str(&read(&whole, "front.json")).unwrap();
    let twin = format!("aba of {}", bone.display());
    assert!(front["methods"].as_array().unwrap().iter().any(|m| m["method"] == twin.as_str()));

    // A run that is not there yet is told apart from one that is broken.
    let begun = directory.path().join("begun");
    fs::create_dir(&begun).unwrap();
    for file in ["config.toml", "inputs.toml"] {
        fs::copy(rewarded.join(file), begun.join(file)).unwrap();
    }
    let parts = ["begun", "no finished soup", "not trained: short, plain", "resume"];
    refuse(evaluate(&whole).arg("--oracle").arg(&begun), &parts);

    // A realised B with a tie is on record; its method is left out, the others are measured.
    let manifest = bone.join("soup/soup.toml");
    let mut soup: toml::Table = fs::read_to_string(&manifest).unwrap().parse().unwrap();
    let tied = toml::Value::try_from([[0.5, 0.5], [0.5, 0.5]]).unwrap();
    soup["mixing"].as_table_mut().unwrap().insert("realised".into(), tied);
    fs::write(&manifest, soup.to_string()).unwrap();
    let tied = directory.path().join("tied");
    succeed(evaluate(&tied).args(["--methods", "bone,realised"]));
    let front: Value = serde_json::from_str(&read(&tied, "front.json")).unwrap();
    assert_eq!(front["left_out"][0]["method"], "bone soup (realised)");
    assert!(front["left_out"][0]["reason"].as_str().unwrap().contains("not dominated"));
    assert!(
        front["methods"].as_array().unwrap().iter().any(|m| m["method"] == "bone soup (nominal)")
    );
}

#[test]
fn single_policies_are_compared_with_each_other_and_as_oracles() {
    let directory = tempfile::tempdir().unwrap();
    let run = |name: &str, mixing: &str, balance: &str| {
        let settings = format!(
            r#"
lora = {{ rank = 2, alpha = 4.0 }}
rollout = {{ max_new_tokens = 6, samples = 4 }}
rl = {{ algorithm = "rloo", steps = 2, batch = 8, learning_rate = 5e-2, standardise_on = 4 }}
balance = {{ {balance} }}
mixing = {{ {mixing} }}
{OBJECTIVES}"#
        );
        let out = directory.path().join(name);
        succeed(&mut start(&task(directory.path(), &settings), &out));
        out
    };
    let average = run("average", "weights = [1, 1]", "");
    let gdpo = run("gdpo", "weights = [1, 1]", "strategy = \"gdpo\"");
    let twice = run("twice", "weights = [2, 1]", "");
    let bone = run("bone", "beta = 0.7", "");
    let evaluate = |subject: &Path, out: &str| {
        let mut command = command();
        command.arg("evaluate").arg(subject).arg("--out").arg(directory.path().join(out));
        command.arg("--data").arg(directory.path()).args(["--prompts", "4", "--grid", "2"]);
        command
    };
    let front = |out: &str| -> Value {
        let path = directory.path().join(out).join("front.json");
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    };
    let labelled = |label: &str, run: &Path| format!("{label}={}", run.display());
    let mut policies = evaluate(&average, "policies");
    policies.arg("--against").arg(labelled("gdpo", &gdpo));
    policies.arg("--against").arg(labelled("twice", &twice));
    succeed(&mut policies);
    let compared = front("policies");
    let methods = compared["methods"].as_array().unwrap();
    let names: Vec<&str> = methods.iter().map(|m| m["method"].as_str().unwrap()).collect();
    assert_eq!(names, ["θ_sft", "average", "gdpo", "average of twice"]);
    // One model for every preference.
    let points = methods[2]["points"].as_array().unwrap();
    assert!(points.iter().all(|point| point["mean"] == points[0]["mean"]));
    assert_eq!(methods[2]["gain"]["over"], "average");

    // As an oracle it counts for the preference that it was trained for.
    let mut oracles = evaluate(&bone, "oracles");
    oracles.arg("--oracle").arg(labelled("twice", &twice));
    succeed(oracles.args(["--methods", "bone,oracle"]));
    let measured = front("oracles");
    let of_twice = measured["oracles"].as_array().unwrap().last().unwrap();
    assert_eq!(of_twice["name"], "policy of twice");
    let preference = of_twice["point"]["preference"].as_array().unwrap();
    assert!((preference[0].as_f64().unwrap() - 2.0 / 3.0).abs() < 1e-12);
    assert_eq!(of_twice["gaps"][0][0], "bone soup (nominal)");
}
