//! A safetensors file: every tensor that is accepted can be read to its last byte.
#![no_main]

mod scratch;

use ladle::{config::Residence, soup::weights::WeightFile};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let path = scratch::file(bytes);
    let Ok((_, tensors)) = WeightFile::open_as(&path, Residence::Copied) else { return };
    for (_, tensor) in tensors {
        assert_eq!(tensor.to_f32().len(), tensor.len());
    }
});
