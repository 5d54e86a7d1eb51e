//! Mixed decoding (coefficients per row, nothing merged) against decoding with merged weights.

use ladle::{
    kernels::{
        Batch, Dtype, HostTensor, KV_BLOCK, KvShape, Segment,
        cpu::{CpuKernels, KvPool},
    },
    merge::{Fetch, FusedCache, FusedOptions, SoupPlan, mixed_decoder},
    model::{config::ModelConfig, decoder::Decoder, linear::Parameter},
    preference::{Coefficients, ModelKey},
};

use crate::soups::{self, Kind, OwnedSoup};

const TOLERANCE: f32 = 1e-4;

fn c(backbones: &[f64]) -> Coefficients {
    Coefficients { backbones: backbones.to_vec(), sft: 1.0 - backbones.iter().sum::<f64>() }
}

/// Interior, one-hot, θ_sft alone, negative, extrapolated.
fn points() -> Vec<Coefficients> {
    [[0.2, 0.3, 0.5], [0.0, 1.0, 0.0], [0.0; 3], [1.6, -0.9, 0.3], [1.4, 0.7, -0.6]]
        .iter()
        .map(|values| c(values))
        .collect()
}

/// Logits of every row of the sequences, run as one ragged batch: `[rows, vocab]` flattened.
pub fn logits(
    decoder: &Decoder<HostTensor>,
    plan: Option<&SoupPlan>,
    sequences: &[(&[u32], &Coefficients)],
) -> Vec<f32> {
    let config = decoder.config();
    let mut batch = Batch::default();
    let mut rows = Vec::new();
    let mut block = 0;
    for (tokens, c) in sequences {
        let start = batch.tokens.len();
        batch.tokens.extend_from_slice(tokens);
        batch.positions.extend(0..tokens.len() as u32);
        let blocks = tokens.len().div_ceil(KV_BLOCK) as u32;
        batch.segments.push(Segment {
            rows: start..batch.tokens.len(),
            cached: 0,
            blocks: (block..block + blocks).collect(),
        });
        block += blocks;
        rows.extend(tokens.iter().map(|_| *c));
    }
    batch.outputs = (0..batch.tokens.len()).collect();
    batch.coefficients = plan.map(|plan| soups::row_coefficients(plan, &rows));
    let mut cache = KvPool::new(KvShape {
        layers: config.layers,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        blocks: block as usize,
        dtype: Dtype::F32.into(),
    })
    .unwrap();
    decoder.forward(&CpuKernels::new(1), &batch, &mut cache).unwrap().data().to_vec()
}

pub fn assert_same(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let spread = want.iter().fold(0f32, |most, v| most.max(v.abs()));
    assert!(spread > 0.05, "{what}: logits that say something, got at most {spread}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= TOLERANCE, "{what}: logit {i} is {got}, expected {want}");
    }
}

fn soups() -> Vec<(String, OwnedSoup)> {
    let mut all = Vec::new();
    for (name, sft, kinds) in [
        ("adapters", None, [Kind::Adapter; 3]),
        ("adapters over an SFT adapter", Some(Kind::Saving), [Kind::Adapter; 3]),
        ("adapters with saved modules", None, [Kind::Saving, Kind::Adapter, Kind::Saving]),
        ("full", None, [Kind::Full; 3]),
        ("mixed", Some(Kind::Saving), [Kind::Full, Kind::Saving, Kind::Adapter]),
    ] {
        for tied in [true, false] {
            let soup = soups::soup(11, soups::config(24, 40, 50, tied), Dtype::F32, sft, &kinds);
            all.push((format!("{name}, tied {tied}"), soup));
        }
    }
    all
}

fn plan(soup: &OwnedSoup) -> SoupPlan {
    SoupPlan::new(soup, &soup.config).unwrap()
}

fn fused(cache: &FusedCache, c: &Coefficients, tokens: &[u32]) -> Vec<f32> {
    let model = match cache.get(&ModelKey::of(c)) {
        Fetch::Ready(model) => model,
        Fetch::Building(ticket) => ticket.wait().unwrap(),
        Fetch::NoRoom => panic!("nothing is leased"),
    };
    logits(model.decoder(), None, &[(tokens, c)])
}

fn cache(plan: SoupPlan, config: &ModelConfig) -> FusedCache {
    let options = FusedOptions { budget: 64 << 20, dtype: None, threads: 1, pace: None };
    FusedCache::open(plan, config.clone(), &options, |_| ()).unwrap()
}

#[test]
fn one_mixed_batch_of_all_coefficients_has_the_logits_of_each_merged_model() {
    for (name, soup) in soups() {
        let plan = plan(&soup);
        let mixed = mixed_decoder(&plan, soup.config.clone()).unwrap();
        let cache = cache(plan.clone(), &soup.config);
        let points = points();
        let prompts: Vec<Vec<u32>> = (0..points.len() as u32)
            .map(|i| (0..5 + 7 * i).map(|j| (13 * j + i) % 50).collect())
            .collect();
        let sequences: Vec<(&[u32], &Coefficients)> =
            prompts.iter().map(Vec::as_slice).zip(&points).collect();
        let together = logits(&mixed, Some(&plan), &sequences);
        let mut rest = together.as_slice();
        for (tokens, c) in sequences {
            let (own, after) = rest.split_at(tokens.len() * soup.config.vocab_size);
            rest = after;
            assert_same(&format!("{name} at {c:?}"), own, &fused(&cache, c, tokens));
        }
    }
}

#[test]
fn one_hot_coefficients_have_the_logits_of_that_model_in_both_modes() {
    let tokens: Vec<u32> = (0..20).map(|i| (i * 17) % 50).collect();
    for (name, soup) in soups() {
        let plan = plan(&soup);
        let mixed = mixed_decoder(&plan, soup.config.clone()).unwrap();
        let cache = cache(plan.clone(), &soup.config);
        for hot in 0..4 {
            let c = c(&[0, 1, 2].map(|i| if i == hot { 1.0 } else { 0.0 }));
            let own = Decoder::load(soup.config.clone(), |name| {
                let values = soup.reference(name, &c.backbones, c.sft);
                let values: Vec<f32> = values.iter().map(|v| v.0 as f32).collect();
                let shape = soup.base[name].shape().to_vec();
                HostTensor::from_f32(&values, shape).map(Parameter::merged)
            })
            .unwrap();
            let own = logits(&own, None, &[(&tokens, &c)]);
            let what = format!("{name}, model {hot}");
            assert_same(&what, &fused(&cache, &c, &tokens), &own);
            assert_same(&what, &logits(&mixed, Some(&plan), &[(&tokens, &c)]), &own);
        }
    }
}

#[test]
fn adapters_of_another_storage_type_than_each_other_are_stacked_exactly() {
    let kinds = [Kind::Adapter; 3];
    let mut soup = soups::soup(6, soups::config(24, 40, 50, true), Dtype::F32, None, &kinds);
    let soups::Owned::Adapter(change) = &mut soup.backbones[1] else { unreachable!() };
    for lora in change.modules.values_mut() {
        for factor in [&mut lora.down, &mut lora.up] {
            *factor = soups::stored(&factor.to_f32(), factor.shape(), Dtype::Bf16);
        }
    }
    let plan = plan(&soup);
    let mixed = mixed_decoder(&plan, soup.config.clone()).unwrap();
    let cache = cache(plan.clone(), &soup.config);
    for c in points() {
        let tokens = [1, 2, 3, 40];
        let merged = fused(&cache, &c, &tokens);
        assert_same("mixed storage", &logits(&mixed, Some(&plan), &[(&tokens, &c)]), &merged);
    }
}

/// A pass leaves out the terms whose coefficients are 0 in all of its rows.
#[test]
fn rows_are_the_same_to_the_bit_whichever_terms_the_others_need() {
    let tokens: Vec<u32> = (0..20).map(|i| (i * 17) % 50).collect();
    let other: Vec<u32> = (0..9).map(|i| (i * 7 + 3) % 50).collect();
    for (name, soup) in soups() {
        let plan = plan(&soup);
        let mixed = mixed_decoder(&plan, soup.config.clone()).unwrap();
        let everything = c(&[0.3, 0.5, -0.4]);
        for values in [[0.0; 3], [1.0, 0.0, 0.0], [0.0, 0.6, 0.4], [0.2, 0.0, 0.0]] {
            let own = c(&values);
            let alone = logits(&mixed, Some(&plan), &[(&tokens, &own)]);
            let sequences: [(&[u32], &Coefficients); 2] = [(&tokens, &own), (&other, &everything)];
            let beside = logits(&mixed, Some(&plan), &sequences);
            assert_eq!(alone, beside[..alone.len()], "{name} at {values:?}");
        }
    }
}
