//! adapter_config.json: read or refused; what is read has finite scales.
#![no_main]

mod scratch;

use ladle::soup::peft::LoraConfig;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok((config, _)) = LoraConfig::open(&scratch::file(bytes)) else { return };
    for module in ["model.layers.0.self_attn.q_proj", "lm_head", ""] {
        let (_, scale) = config.rank_and_scale(module);
        assert!(scale.is_finite(), "{scale}");
        config.targets(module);
        config.saves(module);
    }
});
