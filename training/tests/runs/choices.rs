//! What a run chooses or reports beside its training: β, α, validation rows, condition numbers.

use super::*;

fn settings(more: &str) -> String {
    format!(
        "lora = {{ rank = 2, alpha = 4.0 }}\nrollout = {{ max_new_tokens = 4 }}\n{more}\n{OBJECTIVES}"
    )
}

#[test]
fn beta_is_chosen_on_the_first_updates_and_alpha_on_the_finished_run() {
    let directory = tempfile::tempdir().unwrap();
    // A fifth of 30 updates would be 6: a trial makes 20 of the long schedule.
    let rl = "rl = { steps = 30, batch = 4, minibatch = 4, epochs = 1, standardise_on = 4 }";
    let config = task(directory.path(), &settings(rl));
    let run = directory.path().join("run");
    let at = |command: &mut Command| {
        command.arg("--data").arg(directory.path()).args(["--prompts", "2"]);
        succeed(command)
    };
    let mut beta = command();
    beta.arg("select-beta").arg(&config).arg("--out").arg(&run).args(["--betas", "0.6,0.8"]);
    let table = at(&mut beta);
    assert_eq!(table.matches("<- best").count(), 1, "{table}");
    for trial in ["beta-0.6", "beta-0.8"] {
        let trial = run.join(trial);
        assert_eq!(recorded(&trial, "short", "reward/short").len(), 20);
        let scale = |run: &Path| fs::read_to_string(run.join("standardiser.toml")).unwrap();
        assert_eq!(scale(&trial), scale(&run));
    }
    let mut alpha = command();
    alpha.arg("select-alpha").arg(&run).args(["--alphas", "0,0.5"]);
    let table = at(&mut alpha);
    assert_eq!(table.matches("<- best").count(), 1, "{table}");
    // One factor an objective, each of those that were tried.
    let line = table.lines().find(|line| line.starts_with("each objective")).unwrap();
    for name in ["short", "plain"] {
        let tried = ["0", "0.5"].map(|alpha| line.contains(&format!("{name} = {alpha}")));
        assert!(tried.contains(&true), "{line}");
    }
    assert!(table.contains("in soup.toml: [extrapolation] alpha = "), "{table}");
}

#[test]
fn validation_losses_are_of_as_many_rows_as_were_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let loss = |rows: u64| {
        let out = directory.path().join(rows.to_string());
        let config =
            task(directory.path(), &settings(&format!("sft = {{ validate_on = {rows} }}")));
        let mut command = command();
        command.arg("sft").arg(&config).arg("--out").arg(&out);
        succeed(command.arg("--data").arg(directory.path()));
        let text = fs::read_to_string(out.join("metrics/sft/metrics.jsonl")).unwrap();
        let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        last["validation_loss"].as_f64().unwrap()
    };
    // There are 24.
    let (few, all, more) = (loss(3), loss(24), loss(1000));
    assert_eq!(all, more);
    assert!((few - all).abs() > 1e-6, "{few}, {all}");
}

#[test]
fn the_condition_of_b_is_logged_as_weights_move() {
    let directory = tempfile::tempdir().unwrap();
    let more = "rl = { steps = 4, batch = 4, minibatch = 4, epochs = 1, standardise_on = 4 }\n\
                balance = { strategy = \"inverse\", every = 2 }\nmixing = { beta = 0.7 }";
    let config = task(directory.path(), &settings(more));
    let mut run = start(&config, &directory.path().join("run"));
    let output = finish(run.env("LADLE_LOG", "info"));
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{log}");
    let numbers = log.split("condition number of ").skip(1).map(|rest| {
        let (_, number) = rest.split_once(": ").unwrap();
        let number: String =
            number.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
        number.parse::<f64>().unwrap()
    });
    let numbers: Vec<f64> = numbers.collect();
    // Two backbones with two updates each, and the realised B at the end.
    assert_eq!(numbers.len(), 5, "{log}");
    assert!(numbers.iter().all(|number| *number >= 1.0), "{numbers:?}");
}
