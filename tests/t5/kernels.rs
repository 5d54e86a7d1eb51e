//! The decoder over the CPU kernels, merged and mixed.

use ladle::{
    kernels::{
        Batch, Dtype, HostTensor, KV_BLOCK, KvShape, RowCoefficients, Segment,
        cpu::{CpuKernels, KvPool},
    },
    merge::{SoupPlan, mixed_decoder},
    model::{decoder::Decoder, linear::Parameter},
    preference::Coefficients,
    simd::Isa,
    soup::Soup,
};

use crate::{
    Expected, SOUPS, START, TOLERANCE, expected,
    soups::{merged, open},
};

/// Feeds answers to a decoder: all prompts and the first tokens of all answers in one batch, then
/// `step` tokens of each at a time. Every row's logits, by answer.
pub fn feed(
    kernels: &CpuKernels,
    decoder: &Decoder<HostTensor>,
    plan: Option<&SoupPlan>,
    answers: &[&Expected],
    step: usize,
) -> Vec<Vec<Vec<f32>>> {
    let config = decoder.config();
    let given = |answer: &Expected| [&[START], answer.greedy.as_slice()].concat();
    let length = answers[0].greedy.len();
    let mut next = 0u32;
    let mut take = |tokens: usize| {
        let first = next;
        next += tokens.div_ceil(KV_BLOCK) as u32;
        (first..next).rev().collect::<Vec<u32>>()
    };
    let blocks: Vec<[Vec<u32>; 2]> =
        answers.iter().map(|a| [take(a.prompt.len()), take(length)]).collect();
    let shape = KvShape {
        layers: config.layers,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        blocks: next as usize,
        dtype: Dtype::F32.into(),
    };
    let mut cache = KvPool::new(shape).unwrap();
    let terms = |answer: &Expected| plan.map(|plan| plan.term_values(&answer.c).unwrap());
    let push = |batch: &mut Batch, tokens: &[u32], cached: usize, blocks: &[u32], c: &Expected| {
        let first = batch.tokens.len();
        batch.tokens.extend_from_slice(tokens);
        batch.positions.extend((cached as u32..).take(tokens.len()));
        let rows = first..batch.tokens.len();
        batch.segments.push(Segment { rows, cached, blocks: blocks.to_vec() });
        if let Some(terms) = terms(c) {
            let coefficients = batch
                .coefficients
                .get_or_insert(RowCoefficients { terms: terms.len(), values: Vec::new() });
            tokens.iter().for_each(|_| coefficients.values.extend(&terms));
        }
    };
    let mut logits = vec![Vec::new(); answers.len()];
    let mut done = 0;
    while done < length {
        let mut batch = Batch::default();
        let count = step.min(length - done);
        for (answer, [prompt, own]) in answers.iter().zip(&blocks) {
            if done == 0 {
                let prompts = batch.prompts.get_or_insert_default();
                push(prompts, &answer.prompt, 0, prompt, answer);
            }
            push(&mut batch, &given(answer)[done..done + count], done, own, answer);
            let rows = batch.segments.last().unwrap().rows.clone();
            let (cached, blocks) = (answer.prompt.len(), prompt.clone());
            batch.encoded.push(Segment { rows, cached, blocks });
        }
        batch.outputs = (0..batch.tokens.len()).collect();
        let out = decoder.forward(kernels, &batch, &mut cache).unwrap();
        for (row, values) in out.data().chunks_exact(config.vocab_size).enumerate() {
            logits[row / count].push(values.to_vec());
        }
        done += count;
    }
    logits
}

pub fn argmax(row: &[f32]) -> u32 {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32
}

fn assert_answers(what: &str, answer: &Expected, logits: &[Vec<f32>]) {
    let greedy: Vec<u32> = logits.iter().map(|row| argmax(row)).collect();
    assert_eq!(greedy, answer.greedy, "{what}");
    for (row, expected) in &answer.logits {
        for (got, expected) in logits[*row].iter().zip(expected) {
            assert!((got - expected).abs() < TOLERANCE, "{what} row {row}: {got}, not {expected}");
        }
    }
}

pub fn written_out(soup: &Soup, c: &Coefficients) -> Decoder<HostTensor> {
    let shapes: std::collections::BTreeMap<_, _> = soup.config.tensors().into_iter().collect();
    let tensor = |name: &str| {
        let values: Vec<f32> = merged(soup, c, name).into_iter().map(|v| v as f32).collect();
        let tensor = HostTensor::from_f32(&values, shapes[name].clone()).unwrap();
        Ok::<_, std::convert::Infallible>(Parameter::merged(tensor))
    };
    Decoder::load(soup.config.clone(), tensor).unwrap()
}

#[test]
fn merged_models_answer_as_transformers() {
    for name in SOUPS {
        let soup = open(name);
        for &isa in Isa::available() {
            let kernels = CpuKernels::with_isa(2, isa);
            for (index, answer) in expected(name).iter().enumerate() {
                let decoder = written_out(&soup, &answer.c);
                for step in [1, 5, 64] {
                    let logits = feed(&kernels, &decoder, None, &[answer], step);
                    let what = format!("{name} {isa} answer {index} by {step}");
                    assert_answers(&what, answer, &logits[0]);
                }
            }
        }
    }
}

#[test]
fn one_mixed_batch_answers_as_each_merged_model_and_as_alone() {
    for name in SOUPS {
        let soup = open(name);
        let plan = SoupPlan::new(&soup, &soup.config).unwrap();
        let decoder = mixed_decoder(&plan, soup.config.clone()).unwrap();
        let answers = expected(name);
        let all: Vec<&Expected> = answers.iter().collect();
        let kernels = CpuKernels::new(2);
        let together = feed(&kernels, &decoder, Some(&plan), &all, 1);
        for (index, (answer, logits)) in all.iter().zip(&together).enumerate() {
            assert_answers(&format!("{name} answer {index}"), answer, logits);
            let alone = feed(&kernels, &decoder, Some(&plan), &[answer], 7);
            assert_eq!(alone[0], *logits, "{name} answer {index}: company changes bits");
        }
    }
}
