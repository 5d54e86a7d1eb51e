//! The layers that adapters are on, for each family.

use candle_core::{Device, safetensors::load};

use super::*;

#[path = "../../../tests/support/families.rs"]
#[allow(dead_code)] // the grids need more of it
mod families;

use families::{FAMILIES, Family, write_base};

fn fixtures() -> PathBuf {
    base().join("../..")
}

/// The directory of a family's tiny model.
fn base_of(family: &Family, to: &Path) -> PathBuf {
    if family.model_type == "t5" {
        return fixtures().join(family.fixture).join("base");
    }
    write_base(&fixtures().join("models").join(family.fixture), to);
    to.to_owned()
}

/// Last names and shapes of the matrices of a checkpoint that multiply rows, but for the output head's.
fn linear(base: &Path) -> Vec<(String, Vec<usize>)> {
    let tensors = load(base.join("model.safetensors"), &Device::Cpu).unwrap().into_iter();
    let tables = ["embed_tokens", "shared", "relative_attention_bias", "lm_head"];
    tensors
        .filter(|(_, tensor)| tensor.rank() == 2)
        .map(|(name, tensor)| {
            let last = name.trim_end_matches(".weight").rsplit('.').next().unwrap();
            (last.to_owned(), tensor.dims().to_vec())
        })
        .filter(|(last, _)| !tables.contains(&last.as_str()))
        .collect()
}

const SHORT: &str = "rollout = { max_new_tokens = 2 }";

#[test]
fn adapters_are_on_every_linear_layer_unless_targets_are_named() {
    for family in &FAMILIES {
        let directory = tempfile::tempdir().unwrap();
        let base = base_of(family, &directory.path().join("base"));
        let plan = |lora: &str| {
            let settings = format!("lora = {{ rank = 3{lora} }}\n{SHORT}\n{OBJECTIVES}");
            let config = task_on(&base, directory.path(), &settings);
            let mut command = start(&config, &directory.path().join("run"));
            command.arg("--dry-run");
            command
        };
        if let Some(said) = family.refusal("train") {
            refuse(&mut plan(""), &["a mixture of experts", said]);
            continue;
        }
        let linear = linear(&base);
        let counted = |targets: &[&str]| -> usize {
            let adapted = linear.iter().filter(|(last, _)| targets.contains(&last.as_str()));
            adapted.map(|(_, shape)| 3 * (shape[0] + shape[1])).sum()
        };
        let planned = |lora: &str| -> usize {
            let plan = succeed(&mut plan(lora));
            let stage = plan.lines().find(|line| line.starts_with("short")).unwrap();
            stage.split_whitespace().nth(4).unwrap().parse().unwrap()
        };
        let all: Vec<&str> = linear.iter().map(|(last, _)| last.as_str()).collect();
        assert_eq!(planned(""), counted(&all), "{}", family.model_type);
        let one = all[0];
        let named = planned(&format!(", targets = [{one:?}]"));
        assert_eq!(named, counted(&[one]), "{}", family.model_type);
    }
}

#[test]
fn a_target_that_no_layer_of_the_base_has_is_refused_with_those_that_it_has() {
    for family in &FAMILIES {
        let directory = tempfile::tempdir().unwrap();
        let base = base_of(family, &directory.path().join("base"));
        // The first is there, the second is not.
        let (there, absent, known) = match family.model_type {
            "phi3" => ("o_proj", "q_proj", "qkv_proj, o_proj, gate_up_proj, down_proj"),
            "t5" => ("wi", "wi_1", "q, k, v, o, wi, wo"),
            "mixtral" => ("o_proj", "up_proj", "q_proj, k_proj, v_proj, o_proj"),
            _ => {
                let known = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj";
                ("q_proj", "qkv_proj", known)
            }
        };
        let targets = format!("targets = [{there:?}, {absent:?}]");
        for (settings, key) in [
            (format!("lora = {{ {targets} }}"), "lora.targets"),
            (format!("sft = {{ lora = {{ {targets} }} }}"), "sft.lora.targets"),
        ] {
            let settings = format!("{settings}\n{SHORT}\n{OBJECTIVES}");
            let config = task_on(&base, directory.path(), &settings);
            let run = directory.path().join("run");
            let parts = [&format!("{key} is {absent},"), known];
            refuse(start(&config, &run).arg("--dry-run"), &parts);
            refuse(&mut start(&config, &run), &parts);
            assert!(!run.exists());
        }
    }
}

#[test]
fn projections_that_a_checkpoint_holds_in_one_are_trained_by_its_names() {
    let directory = tempfile::tempdir().unwrap();
    let base = directory.path().join("base");
    write_base(&fixtures().join("models/phi3"), &base);
    let settings = format!(
        r#"
lora = {{ rank = 2, alpha = 4.0, targets = ["qkv_proj", "gate_up_proj"] }}
rollout = {{ max_new_tokens = 4 }}
rl = {{ steps = 1, batch = 4, learning_rate = 1e-2, standardise_on = 4 }}
{OBJECTIVES}"#
    );
    let config = task_on(&base, directory.path(), &settings);
    let run = directory.path().join("run");
    succeed(&mut start(&config, &run));
    let adapter = run.join("adapters/short");
    let said = fs::read(adapter.join("adapter_config.json")).unwrap();
    let said: Value = serde_json::from_slice(&said).unwrap();
    assert_eq!(said["target_modules"], serde_json::json!(["qkv_proj", "gate_up_proj"]));
    let factors = load(adapter.join("adapter_model.safetensors"), &Device::Cpu).unwrap();
    let mut moved = 0;
    for (name, factor) in &factors {
        assert!(name.contains("qkv_proj") || name.contains("gate_up_proj"), "{name}");
        let squares = factor.to_dtype(candle_core::DType::F32).unwrap().sqr().unwrap();
        let norm = squares.sum_all().unwrap().to_scalar::<f32>().unwrap();
        moved += usize::from(name.contains("lora_B") && norm > 0.0);
    }
    assert_eq!(moved, factors.len() / 2, "not every B has moved");
    Soup::open(&run.join("soup"), &OpenOptions::default()).unwrap();
}
