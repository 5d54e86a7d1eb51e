//! Configurations and directories that are refused by name.

use super::*;

#[test]
fn bad_configurations_are_refused_by_name_before_anything_is_computed() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    let cases: [(&str, &[&str]); 35] = [
        ("colour = 1", &["colour", "unknown field"]),
        ("rl = { step = 3 }", &["step", "unknown field"]),
        ("rl = { steps = 0 }", &["rl.steps is 0", "at least 1"]),
        ("mixing = { beta = 0.3 }", &["0.3"]),
        ("mixing = { matrix = [[0.5, 0.5], [0.5, 0.5]] }", &["mixing"]),
        ("rollout = { samples = 3 }", &["rl.batch is 64", "rollout.samples"]),
        ("lora = { targets = [\"q\"] }", &["lora.targets is q,", "q_proj, k_proj"]),
        ("lora = { targets = [\"query\"] }", &["lora.targets is query,", "q_proj"]),
        ("lora = { targets = [] }", &["lora.targets is []", "left out"]),
        ("lora = { dropout = 1.0 }", &["lora.dropout is 1", "less than 1"]),
        ("sft = { lora = { alpha = 0.0 } }", &["sft.lora.alpha is 0", "above 0"]),
        ("optimizer = { beta2 = 1.0 }", &["optimizer.beta2 is 1", "less than 1"]),
        ("balance = { every = 0 }", &["balance.every is 0", "at least 1"]),
        ("balance = { floor = 0.0 }", &["balance.floor is 0", "above 0"]),
        ("balance = { shift = -1.0 }", &["balance.shift is -1", "at least 0"]),
        ("mixing = { identity = false }", &["mixing.identity is false", "true"]),
        ("mixing = { weights = [1.0] }", &["mixing.weights is [1.0]", "one weight"]),
        ("mixing = { weights = [1.0, -1.0] }", &["mixing.weights is [1.0, -1.0]", "at least 0"]),
        (
            "rl = { algorithm = \"modpo\", kl = 0.0 }\nrollout = { samples = 2 }",
            &["rl.kl is 0", "β"],
        ),
        (
            "rl = { algorithm = \"modpo\" }\nrollout = { samples = 2 }",
            &["rl.kl_target is 3", "modpo"],
        ),
        (
            "rl = { algorithm = \"rloo\", clip = 0.1 }\nrollout = { samples = 2 }",
            &["rl.clip is 0.1", "ppo"],
        ),
        ("rl = { algorithm = \"remax\", epochs = 2 }", &["rl.epochs is 2", "ppo"]),
        ("rl = { advantage_clip = 5.0 }", &["rl.advantage_clip is 5.0", "remax or rloo"]),
        ("rl = { kl_target = 0, kl_horizon = 100.0 }", &["rl.kl_horizon is 100.0", "kl_target"]),
        ("rl = { kl = 0, kl_target = 2.0 }", &["rl.kl_target is 2.0", "left out where rl.kl is 0"]),
        ("rl = { minibatch = 96 }", &["rl.minibatch is 96", "at most rl.batch"]),
        (
            "rl = { algorithm = \"modpo\", kl_target = 0, batch = 63 }\nrollout = { samples = 3 }",
            &["rollout.samples is 3", "even", "modpo"],
        ),
        ("balance = { every = 5 }", &["balance.every is 5", "inverse or delta"]),
        ("balance = { strategy = \"delta\", floor = 0.1 }", &["balance.floor is 0.1", "inverse"]),
        (
            "mixing = { weights = [2.0, 1.0] }\nbalance = { strategy = \"inverse\", lead = 0.1 }",
            &["balance.lead is 0.1", "one policy"],
        ),
        (
            "mixing = { weights = [2.0, 1.0] }\nlora = { shared = false }",
            &["lora.shared is false", "one policy"],
        ),
        (
            "mixing = { beta = 0.75 }\nbalance = { strategy = \"inverse\", lead = 0.6 }",
            &["balance: lead is 0.6", "at most 0.5"],
        ),
        ("balance = { strategy = \"gdpo\" }", &["rl.algorithm is PPO", "rloo", "gdpo"]),
        ("balance = { strategy = \"invers\" }", &["invers", "average", "inverse"]),
        (
            "mixing = { identity = true }\nbalance = { strategy = \"inverse\" }",
            &["balance.strategy is inverse", "average with mixing.identity"],
        ),
    ];
    for (settings, parts) in cases {
        let config = task(directory.path(), &format!("{settings}\n{OBJECTIVES}"));
        refuse(&mut start(&config, &run), parts);
    }
    // The tiny model has 256 positions.
    let config =
        task(directory.path(), &format!("rollout = {{ max_new_tokens = 255 }}\n{OBJECTIVES}"));
    refuse(&mut start(&config, &run), &["rollout.max_new_tokens is 255 after prompts", "max_pos"]);
    let config =
        task(directory.path(), &format!("sft = {{ max_response_tokens = 1 }}\n{OBJECTIVES}"));
    refuse(&mut start(&config, &run), &["sft.max_response_tokens is 1", "reference"]);
    fs::remove_dir_all(&run).unwrap();
    let config =
        task(directory.path(), &format!("sft = {{ steps = 4, epochs = 2 }}\n{OBJECTIVES}"));
    refuse(&mut start(&config, &run), &["sft.steps is 4, more than the 2 updates", "epochs"]);
    fs::remove_dir_all(&run).unwrap();
    // What another format would read.
    let config = task(directory.path(), OBJECTIVES);
    for (changes, parts) in [
        (&["data.documents=3"][..], ["data.documents is 3", "alce"]),
        (&["data.format=scitldr"], ["data.reference is answer", "jsonl"]),
        (&["data.format=scitldr", "data.id=question"], ["data.id is question", "jsonl"]),
    ] {
        let changes = changes.iter().flat_map(|change| ["--set", change]);
        refuse(start(&config, &run).args(changes), &parts);
    }
    // What the soup would refuse once all is trained.
    for name in ["plain words", "sft", "..", "short"] {
        let objectives = OBJECTIVES.replace("\"plain\"", &format!("{name:?}"));
        let config = task(directory.path(), &objectives);
        refuse(&mut start(&config, &run), &["objectives[1].name", name, "a name of its own"]);
    }
    let unlabelled = OBJECTIVES.replace("regex\", pattern = \"[aeiou]", "accuracy");
    let config = task(directory.path(), &format!("sft = {{}}\n{unlabelled}"));
    refuse(&mut start(&config, &run), &["reward `plain`", "no field `label`"]);
    // In one row alone, and not the first.
    let rows = fs::read_to_string(directory.path().join("rows.jsonl")).unwrap();
    let labelled = rows.replace("\"answer\"", "\"label\": \"a\", \"answer\"");
    let last = labelled.trim_end().rfind('\n').unwrap();
    let (labelled, unlabelled) = (&labelled[..last], "{\"question\": \"a\", \"answer\": \"b\"}\n");
    fs::write(directory.path().join("rows.jsonl"), format!("{labelled}\n{unlabelled}")).unwrap();
    refuse(&mut start(&config, &run), &["row ", "24", "reward `plain`", "no field `label`"]);
    assert!(!run.exists());
    let unknown = OBJECTIVES.replace("regex", "regexp");
    let config = task(directory.path(), &unknown);
    refuse(&mut start(&config, &run), &["regexp"]);
    let config = task(directory.path(), OBJECTIVES);
    refuse(start(&config, &run).args(["--only", "long"]), &["long", "short, plain"]);
    fs::write(directory.path().join("rows.jsonl"), "{\"question\": \"a\", \"answer\": \"b\"}\n{\n")
        .unwrap();
    refuse(&mut start(&config, &run), &["rows.jsonl", ":2"]);
    fs::remove_file(directory.path().join("rows.jsonl")).unwrap();
    refuse(&mut start(&config, &run), &["rows.jsonl"]);
}

/// The soup of the run would be refused once all is trained.
#[test]
fn a_base_that_cannot_be_served_is_refused_before_anything_is_computed() {
    let directory = tempfile::tempdir().unwrap();
    let [run, copy] = ["run", "copy"].map(|name| directory.path().join(name));
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(base()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    fs::write(copy.join("generation_config.json"), "{\"eos_token_id\": 99999}").unwrap();
    let config = task(directory.path(), OBJECTIVES);
    let text = fs::read_to_string(&config).unwrap();
    let [own, other] = [base(), copy].map(|path| format!("base = {path:?}"));
    assert!(text.contains(&own));
    fs::write(&config, text.replace(&own, &other)).unwrap();
    refuse(&mut start(&config, &run), &["base ", "token 99999"]);
    assert!(!run.exists());
}

#[test]
fn what_nothing_could_be_selected_from_is_refused_before_anything_is_trained() {
    let directory = tempfile::tempdir().unwrap();
    let config = task(directory.path(), OBJECTIVES);
    let [run, other] = ["run", "other"].map(|name| directory.path().join(name));
    let select = |out: &Path, arguments: &[&str]| {
        let mut command = command();
        command.arg("select-beta").arg(&config).arg("--out").arg(out);
        command.arg("--data").arg(directory.path()).args(arguments);
        command
    };
    refuse(&mut select(&run, &["--betas", "0.6,1.2"]), &["beta is 1.2", "expected"]);
    refuse(&mut select(&run, &["--prompts", "0"]), &["--prompts is 0", "at least 1"]);
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("validation =", "# validation =")).unwrap();
    refuse(&mut select(&other, &[]), &["data.validation"]);
    assert!(!run.join("standardiser.toml").exists() && !other.join("standardiser.toml").exists());
}

#[test]
fn another_configuration_in_the_same_directory_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    let settings = |steps: u64| {
        format!(
            "rl = {{ steps = {steps}, batch = 4, standardise_on = 4 }}\nrollout = {{ max_new_tokens = 2 }}\n{OBJECTIVES}"
        )
    };
    succeed(&mut start(&task(directory.path(), &settings(1)), &run));
    refuse(&mut start(&task(directory.path(), &settings(2)), &run), &["config.toml", "resume"]);
}
