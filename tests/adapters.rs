//! Every setting and every form of tensor name that PEFT can write: served as PEFT serves it, or
//! refused by name. Adapters and logits are `tests/reference/make_adapters.py`'s.

#[path = "common/mod.rs"]
mod common;
#[path = "common/soup.rs"]
mod soups;

use std::{collections::BTreeMap, fs, path::Path, sync::LazyLock};

use ladle::{
    kernels::{Dtype, HostTensor, cpu::CpuKernels},
    merge::{Merger, SoupPlan, mixed_decoder},
    model::{decoder::Decoder, linear::Parameter},
    preference::Coefficients,
    soup::{
        Activation, OpenOptions, Soup, SoupError,
        init::{Recipe, init},
        manifest::{BaseEntry, Mixing},
        peft,
    },
};
use serde_json::Value;

use common::model::{Run, Sequence, run};
use soups::{fixture, numbers, options};

static REFERENCE: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_slice(&fs::read(fixture("adapters/reference.json")).unwrap()).unwrap()
});

fn cases() -> impl Iterator<Item = (&'static String, &'static Value)> {
    REFERENCE["cases"].as_object().unwrap().iter()
}

/// A soup of backbones by name, as `ladle init` makes it.
fn soup_of(dir: &Path, base: &Path, backbones: &[(&str, &Path)]) -> Result<Soup, SoupError> {
    let n = backbones.len();
    let identity = (0..n).map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect());
    let recipe = Recipe {
        name: "soup".to_owned(),
        base: BaseEntry { path: Some(base.to_owned()), ..BaseEntry::default() },
        sft: None,
        objectives: Vec::new(),
        backbones: backbones
            .iter()
            .map(|(name, at)| ((*name).to_owned(), (*at).to_owned()))
            .collect(),
        mixing: Mixing { matrix: Some(identity.collect()), ..Mixing::default() },
        activation: Activation::All,
    };
    init(dir, &recipe, &options(), |_| Ok::<_, SoupError>(()))?;
    Soup::open(dir, &OpenOptions { base: None, ..options() })
}

fn soup_of_case(dir: &Path, name: &str) -> Result<Soup, SoupError> {
    let base = fixture("adapters").join(REFERENCE["cases"][name]["base"].as_str().unwrap());
    soup_of(&dir.join("soup"), &base, &[("tuned", &fixture("adapters").join(name))])
}

fn sequence() -> Sequence {
    let tokens = numbers(&REFERENCE["tokens"]).into_iter().map(|t| t as u32).collect();
    Sequence { tokens, logits: Vec::new() }
}

fn logits(decoder: &Decoder<HostTensor>, coefficients: Option<&[Vec<f32>]>) -> Vec<f32> {
    let sequence = sequence();
    let steps = [vec![(0, sequence.tokens.len())]];
    let setup = Run { steps: &steps, cache: Dtype::F32, coefficients };
    let rows = run(&CpuKernels::new(1), decoder, &[sequence], setup);
    rows.into_iter().flatten().flatten().collect()
}

fn fused(soup: &Soup, c: &Coefficients) -> Vec<f32> {
    let merger = Merger::new(SoupPlan::new(soup, &soup.config).unwrap(), None).unwrap();
    let get = |name: &str| merger.tensor(name, c).map(Parameter::merged);
    logits(&Decoder::load(soup.config.clone(), get).unwrap(), None)
}

fn mixed(soup: &Soup, c: &Coefficients) -> Vec<f32> {
    let plan = SoupPlan::new(soup, &soup.config).unwrap();
    let decoder = mixed_decoder(&plan, soup.config.clone()).unwrap();
    logits(&decoder, Some(&[plan.term_values(c).unwrap()]))
}

fn expected(name: &str) -> Vec<f64> {
    REFERENCE["cases"][name]["logits"].as_array().unwrap().iter().flat_map(numbers).collect()
}

fn worst(got: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    got.iter().zip(expected).map(|(g, e)| (f64::from(*g) - e).abs()).fold(0.0, f64::max)
}

#[test]
fn every_adapter_that_is_accepted_computes_what_peft_makes_of_it() {
    let one = Coefficients { backbones: vec![1.0], sft: 0.0 };
    let served: Vec<_> = cases().filter(|(_, case)| case["logits"].is_array()).collect();
    assert!(served.len() > 40, "{}", served.len());
    let mut off = Vec::new();
    for (name, _) in served {
        let dir = tempfile::tempdir().unwrap();
        match soup_of_case(dir.path(), name) {
            Err(error) => off.push(format!("{name}: {error}")),
            Ok(soup) => {
                for (mode, got) in [("fused", fused(&soup, &one)), ("mixed", mixed(&soup, &one))] {
                    let worst = worst(&got, &expected(name));
                    if worst.is_nan() || worst > 1e-4 {
                        off.push(format!("{name}, {mode}: off by {worst}"));
                    }
                }
            }
        }
    }
    assert!(off.is_empty(), "{off:#?}");
}

#[test]
fn every_adapter_that_cannot_be_served_is_refused_by_name() {
    let refused: Vec<_> = cases().filter(|(_, case)| case["refused"].is_string()).collect();
    assert!(refused.len() > 25, "{}", refused.len());
    let mut wrong = Vec::new();
    for (name, case) in refused {
        let dir = tempfile::tempdir().unwrap();
        let expected = case["refused"].as_str().unwrap();
        match soup_of_case(dir.path(), name) {
            Ok(_) => wrong.push(format!("{name} was accepted")),
            Err(error) if error.to_string().contains(expected) => {}
            Err(error) => wrong.push(format!("{name}: no {expected} in: {error}")),
        }
        assert!(!dir.path().join("soup").exists(), "{name} left a soup behind");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_key_that_peft_writes_is_unknown() {
    let known: Vec<&str> = peft::KEYS.iter().map(|key| key.name).collect();
    assert!(known.is_sorted());
    let written: Vec<&str> =
        REFERENCE["keys"].as_array().unwrap().iter().map(|key| key.as_str().unwrap()).collect();
    assert_eq!(known, written);
}

#[test]
fn the_page_has_the_table_of_keys() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/soup-format.md");
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains(&peft::page()), "docs/soup-format.md should have:\n{}", peft::page());
}

/// Backbones that keep the tie and backbones that part head and embedding, over one tied base.
#[test]
fn a_soup_of_tied_and_parted_backbones_gives_each_its_own_logits() {
    let names =
        ["plain", "lora-head-tied", "saved-head-tied", "tying-embedding", "saved-both-tied"];
    let dir = tempfile::tempdir().unwrap();
    let paths: Vec<_> = names.iter().map(|name| (*name, fixture("adapters").join(name))).collect();
    let backbones: Vec<_> = paths.iter().map(|(name, path)| (*name, path.as_path())).collect();
    let soup = soup_of(&dir.path().join("soup"), &fixture("adapters/tied"), &backbones).unwrap();
    assert!(!soup.config.tied);
    for (i, name) in names.iter().enumerate() {
        let mut c = Coefficients { backbones: vec![0.0; names.len()], sft: 0.0 };
        c.backbones[i] = 1.0;
        for got in [fused(&soup, &c), mixed(&soup, &c)] {
            let worst = worst(&got, &expected(name));
            assert!(worst < 1e-4, "{name}: {worst}");
        }
    }
    let c = Coefficients { backbones: vec![0.3, 0.2, 0.4, -0.2, 0.1], sft: 0.2 };
    let (fused, mixed) = (fused(&soup, &c), mixed(&soup, &c));
    let mixed: Vec<f64> = mixed.into_iter().map(f64::from).collect();
    assert!(worst(&fused, &mixed) < 1e-4);
}

#[test]
fn a_repeated_head_costs_no_second_term() {
    let dir = tempfile::tempdir().unwrap();
    let soup = soup_of_case(dir.path(), "lora-head-untied").unwrap();
    let plan = SoupPlan::new(&soup, &soup.config).unwrap();
    let by_name: BTreeMap<_, _> = plan.tensors().iter().map(|t| (t.name.as_str(), t)).collect();
    let head = by_name["lm_head.weight"];
    assert_eq!((head.dense.len(), head.low_rank.len()), (1, 1));
}
