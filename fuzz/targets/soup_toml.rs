//! soup.toml: what parses can be solved and written, and reads back the same.
#![no_main]

use ladle::soup::Manifest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(manifest) = Manifest::parse(text) else { return };
    let mixing = manifest.mixing().expect("checked");
    let alpha = manifest.alpha().expect("checked");
    let solution = mixing.solve(&manifest.default_preference(), &alpha);
    let sum: f64 = solution.coefficients.backbones.iter().sum::<f64>() + solution.coefficients.sft;
    assert!((sum - 1.0).abs() < 1e-6, "Σc = {sum}");
    manifest.menu().expect("checked");
    let written = manifest.to_toml().expect("written");
    assert_eq!(Manifest::parse(&written).expect("reads back"), manifest);
});
