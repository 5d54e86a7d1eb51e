//! A GGUF file: header, configuration, tokenizer and every tensor that the header promises.
#![no_main]

mod scratch;

use ladle::{
    import::gguf::{Gguf, Stored},
    model::config::ModelConfig,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(gguf) = Gguf::open(&scratch::file(bytes)) else { return };
    let _ = gguf.tokenizer();
    let Ok(config) = gguf.config("float32") else { return };
    let Ok(config) = ModelConfig::from_json(&config) else { return };
    for source in gguf.sources(&config).into_iter().flatten() {
        if let Ok(values) = gguf.values(&source) {
            assert_eq!(values.len(), source.shape.iter().product::<usize>());
        }
        if let Ok(Stored::Blocks(kind)) = gguf.stored(&source) {
            let _ = gguf.blocks(&source, kind);
        }
    }
});
