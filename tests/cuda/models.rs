//! Whole forward passes against transformers' logits and the CPU's.

use ladle::{
    kernels::{
        Dtype, Kernels,
        cpu::CpuKernels,
        cuda::{CudaKernels, Weight},
    },
    model::{decoder::Decoder, linear::Parameter},
};

use crate::{
    common::model::{Model, Run, dense_names, family_names, load, run, run_on},
    emulator::Emulator,
    roomy,
};

fn decoder(cuda: &CudaKernels<Emulator>, model: &Model) -> Decoder<Weight> {
    let weight = |name: &str| cuda.weight(&model.weights[name]).map(Parameter::merged);
    Decoder::load(model.config.clone(), weight).unwrap()
}

fn logits(model: &Model, dtype: Dtype, steps: &[Vec<(usize, usize)>]) -> Vec<Vec<Vec<f32>>> {
    let cuda = CudaKernels::new(roomy(), dtype).unwrap();
    let setup = Run { steps, cache: dtype, coefficients: None };
    let cache = |shape| cuda.cache(shape).unwrap();
    let values = |tensor: &_| cuda.values(tensor).unwrap();
    run_on(&cuda, &decoder(&cuda, model), &model.sequences, setup, cache, values)
}

fn assert_close(what: &str, got: &[Vec<Vec<f32>>], expected: &[Vec<Vec<f32>>], tolerance: f32) {
    for (got, expected) in got.iter().flatten().flatten().zip(expected.iter().flatten().flatten()) {
        assert!((got - expected).abs() <= tolerance, "{what}: {got} for {expected}");
    }
}

#[test]
fn logits_equal_transformers() {
    let steps = [vec![(0, 20), (1, 7)], vec![(0, 1), (2, 1), (1, 1)], vec![(0, 16), (1, 3)]];
    for name in family_names() {
        let model = load(name);
        let got = logits(&model, Dtype::F32, &steps);
        for (got, sequence) in got.iter().zip(&model.sequences) {
            let expected = &sequence.logits[..got.len()];
            assert_close(name, std::slice::from_ref(got), &[expected.to_vec()], 1e-4);
        }
    }
}

#[test]
fn narrow_models_stay_close_to_the_cpu_in_f32() {
    let steps = [vec![(0, 20), (1, 7)], vec![(0, 17), (1, 4), (2, 1)]];
    for name in dense_names() {
        for (dtype, tolerance) in [(Dtype::Bf16, 0.1), (Dtype::F16, 0.02)] {
            let model = load(name).cast(dtype);
            let wide = model.clone().cast(Dtype::F32);
            let setup = Run { steps: &steps, cache: Dtype::F32, coefficients: None };
            let expected = run(&CpuKernels::new(2), &wide.decoder(), &wide.sequences, setup);
            let what = format!("{name} {dtype}");
            assert_close(&what, &logits(&model, dtype, &steps), &expected, tolerance);
        }
    }
}
