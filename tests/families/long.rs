//! A model with longrope beyond its original context (tests/reference/make_long_context.py).

use ladle::{
    import::{ImportOptions, import},
    kernels::HostTensor,
    model::{config::ModelConfig, decoder::Decoder, linear::Parameter},
    soup::Checkpoint,
};
use safetensors::SafeTensors;

use crate::{common::fixture, decoders::logits, families::write_base};

#[test]
fn a_model_of_two_contexts_is_imported_with_the_longer_ones_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    write_base(&fixture("models/phi4-mini"), &source);
    let import_as = |long_context| {
        let options =
            ImportOptions { long_context, ..ImportOptions::new(dir.path().join("models")) };
        import(source.to_str().unwrap(), &options).unwrap()
    };
    let context = |dir: &std::path::Path| {
        let checkpoint = Checkpoint::open(dir).unwrap();
        ModelConfig::from_json(checkpoint.config()).unwrap().max_positions
    };
    assert_eq!(context(&import_as(false).dir), 40);
    let imported = import_as(true);
    assert_eq!((imported.id.as_str(), context(&imported.dir)), ("source-long", 128));
    assert!(import_as(true).already_there);

    let checkpoint = Checkpoint::open(&imported.dir).unwrap();
    let config = ModelConfig::from_json(checkpoint.config()).unwrap();
    let tensor = |name: &str| {
        let tensor: HostTensor = checkpoint.get(name).unwrap();
        Ok::<_, std::convert::Infallible>(Parameter::merged(tensor))
    };
    let decoder = Decoder::load(config, tensor).unwrap();
    let bytes = std::fs::read(fixture("models/phi4-mini/long.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let data = |name: &str| file.tensor(name).unwrap().data().to_vec();
    let tokens: Vec<u32> = data("tokens")
        .chunks_exact(8)
        .map(|id| u32::from_le_bytes(id[..4].try_into().unwrap()))
        .collect();
    let expected: Vec<f32> = data("logits")
        .chunks_exact(4)
        .map(|value| f32::from_le_bytes(value.try_into().unwrap()))
        .collect();
    let got = logits(&[(&decoder, &tokens)]);
    let got: Vec<f32> = got[got.len() - 8..].concat();
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(&expected) {
        assert!((got - expected).abs() < 1e-4, "{got}, not {expected}");
    }
}

#[test]
fn a_model_of_one_context_has_no_longer_one() {
    let dir = tempfile::tempdir().unwrap();
    for model in ["llama3", "qwen2-yarn"] {
        let source = dir.path().join(model);
        write_base(&fixture("models").join(model), &source);
        let options =
            ImportOptions { long_context: true, ..ImportOptions::new(dir.path().join("models")) };
        let error = import(source.to_str().unwrap(), &options).unwrap_err().to_string();
        assert!(error.contains(model) && error.contains("--long-context"), "{error}");
    }
}
