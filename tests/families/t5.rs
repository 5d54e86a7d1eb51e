//! The cells of T5, on its soups of tests/fixtures, against the greedy tokens of transformers and PEFT
//! (tests/t5 compares logits).

use std::{fs, path::Path};

use ladle::{
    engine::MergeMode,
    import::{ImportOptions, Quantise, import},
    kernels::{BlockType, HostTensor},
    preference::Coefficients,
    soup::{Activation, Checkpoint},
};
use serde_json::{Value, json};

use crate::{
    common::{copy_tree, fixture, numbers, open, reference},
    soups::{Backbones, ask, combined, engine, noise, request, soup, widened, write},
};

const ADAPTERS: &str = "soup-t5";
const FULL: &str = "soup-t5-gated";
/// Of a log-probability, where inputs are rounded to 8 bits.
const ROUNDED: f32 = 0.15;

/// Prompts, coefficients and greedy tokens.
fn expected(name: &str) -> Vec<(Vec<u32>, Coefficients, Vec<u32>)> {
    let ids = |value| numbers(value).into_iter().map(|id| id as u32).collect();
    let (document, _) = reference(name);
    let all = document["answers"].as_array().unwrap().iter();
    all.map(|answer| {
        let mut backbones = numbers(&answer["coefficients"]);
        let sft = backbones.pop().unwrap();
        let prompt = &document["tokens"][answer["prompt"].as_u64().unwrap() as usize];
        (ids(prompt), Coefficients { backbones, sft }, ids(&answer["greedy"]))
    })
    .collect()
}

fn answers(name: &str, mode: MergeMode) -> Result<(), String> {
    let engine = engine(&open(name), mode)?;
    let expected = expected(name);
    let requests = expected.iter().map(|(prompt, c, greedy)| request(prompt, c, greedy.len()));
    let given = ask(&engine, requests.collect())?;
    for ((_, _, greedy), answer) in expected.iter().zip(given) {
        assert_eq!(answer.ids(), *greedy, "{name} {mode:?}");
    }
    Ok(())
}

/// A T5 of random weights like the soup's, each dimension wide enough for blocks.
fn write_wide_base(to: &Path) {
    copy_tree(&fixture(ADAPTERS).join("base"), to);
    let path = to.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (key, size) in [("d_model", 32), ("d_kv", 16), ("d_ff", 64)] {
        config[key] = json!(size);
    }
    fs::write(&path, config.to_string()).unwrap();
    let narrow = Checkpoint::open(&fixture(ADAPTERS).join("base")).unwrap();
    let wide = |size: usize| match size {
        12 | 16 => 32,
        24 => 64,
        other => other,
    };
    let tensors = narrow.tensors().iter().zip(1..).map(|((name, tensor), seed)| {
        // The number of buckets and of heads stay.
        let biases = name.contains("relative_attention_bias");
        let shape = tensor.shape().iter().map(|&size| if biases { size } else { wide(size) });
        let shape: Vec<usize> = shape.collect();
        let norm = shape.len() == 1;
        // What repeats the embedding has its values.
        let copy = name.contains("embed_tokens") || name == "shared.weight";
        let seed = if copy { 0 } else { seed };
        let values = noise(shape.iter().product(), if norm { 0.1 } else { 0.4 }, seed);
        let values: Vec<f32> = values.into_iter().map(|v| if norm { 1.0 + v } else { v }).collect();
        (name.clone(), HostTensor::from_f32(&values, shape).unwrap())
    });
    write(to, &tensors.collect::<Vec<_>>());
}

pub fn attempt(capability: &str) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let base = fixture(ADAPTERS).join("base");
    let imported = |source: &Path, quantise| {
        let models = dir.path().join("models");
        let options = ImportOptions { quantise, copy: true, ..ImportOptions::new(models) };
        import(source.to_str().unwrap(), &options).map(|it| it.dir).map_err(|e| e.to_string())
    };
    match capability {
        "import" => imported(&base, None).map(drop),
        "LoRA" => answers(ADAPTERS, MergeMode::Auto),
        "full" => answers(FULL, MergeMode::Auto),
        "mixed" => [ADAPTERS, FULL].iter().try_for_each(|soup| answers(soup, MergeMode::Mixed)),
        "fused" => [ADAPTERS, FULL].iter().try_for_each(|soup| answers(soup, MergeMode::Fused)),
        "quantised" => {
            let source = dir.path().join("source");
            write_wide_base(&source);
            let blocks = imported(&source, Some(Quantise::To(BlockType::Q6)))?;
            let wide = widened(&blocks, dir.path().join("wide"));
            let on = |base: &Path, mode| {
                let dir = tempfile::tempdir_in(dir.path()).unwrap().keep();
                let soup = soup(base, &dir, Backbones::Adapters, Activation::All)?;
                let kept = soup.base.tensors().values().filter(|t| t.dtype().blocks().is_some());
                Ok::<_, String>((kept.count(), engine(&soup, mode)?))
            };
            let (kept, quantised) = on(&blocks, MergeMode::Auto)?;
            assert!(kept >= 30, "{kept} matrices are in blocks");
            let (kept, exact) = on(&wide, MergeMode::Fused)?;
            assert_eq!(kept, 0);
            for (prompt, c, _) in expected(ADAPTERS) {
                let c = Coefficients { backbones: c.backbones[..2].to_vec(), ..c };
                let one = |engine| ask(engine, vec![request(&prompt, &c, 1)]);
                let (got, want) = (one(&quantised)?.remove(0), one(&exact)?.remove(0));
                let [got, want] = [&got, &want].map(|a| a.tokens[0].logprob.unwrap());
                assert!((got - want).abs() < ROUNDED, "{got}, not {want}");
            }
            Ok(())
        }
        "MOD" => {
            // All weight on one backbone is that backbone; tests/t5 combines several.
            let engine = engine(&open(ADAPTERS), MergeMode::Auto)?;
            let all = expected(ADAPTERS);
            let alone = all.iter().filter(|(_, c, _)| c.backbones.contains(&1.0) && c.sft == 0.0);
            let mut seen = 0;
            for (prompt, c, greedy) in alone {
                let request = combined(request(prompt, c, greedy.len()), &c.backbones);
                assert_eq!(ask(&engine, vec![request])?.remove(0).ids(), *greedy);
                seen += 1;
            }
            assert!(seen > 0, "no answer of one backbone");
            Ok(())
        }
        "answer-only" => soup(&base, dir.path(), Backbones::Adapters, Activation::Answer).map(drop),
        other => panic!("{other} is not tried here"),
    }
}
