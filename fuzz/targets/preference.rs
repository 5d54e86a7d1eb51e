//! A preference as text: the suffix of a model id, the header, the command line.
#![no_main]

use ladle::preference::{Alpha, Form, LambdaRule, Menu, MixingMatrix, Preference};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let menu = Menu {
        objectives: ["helpful", "harmless", "brief"].map(str::to_owned).to_vec(),
        presets: vec![("balanced".to_owned(), vec![1.0; 3])],
        efforts: Vec::new(),
        default_preference: Preference::uniform(3),
        default_alpha: Alpha::default(),
        alpha_bounds: (0.0, 2.0),
        default_rule: LambdaRule::default(),
    };
    let form = Form::from_text("model", text);
    let Ok(preference) = form.and_then(|form| menu.preference("model", form)) else { return };
    let sum: f64 = preference.weights().iter().sum();
    assert!((sum - 1.0).abs() < 1e-9 && preference.weights().iter().all(|&weight| weight >= 0.0));
    let mixing = MixingMatrix::circulant(3, 0.7).expect("a matrix");
    let c = mixing.solve(&preference, &menu.default_alpha).coefficients;
    assert!((c.backbones.iter().sum::<f64>() + c.sft - 1.0).abs() < 1e-6);
});
