//! One LoRA update (forward, backward, clipping, AdamW): `cargo bench --workspace --bench
//! update -- BASE DIR SHAPE REPEATS [recompute] [bf16]` prints one JSON line.
//!
//! BASE is a Hugging Face directory, DIR holds the inputs that `benches/peers/lora_update_torch.py`
//! made, SHAPE is `packed` (cross-entropy of 8 × 128 tokens) or `rloo` (2 prompts of 170 tokens, 8
//! responses of 30 tokens to each). `benches/run-update` runs it beside PEFT and TRL.

use std::{collections::BTreeMap, fs, path::Path, time::Instant};

use candle_core::{DType, Device, Tensor, safetensors::load};
use ladle_training::{
    optimizer::{AdamW, AdamWConfig},
    precision::Precision,
    rl::{
        lora::LoraConfig,
        packing::{Packed, Sequence, pack},
        policy::Policy,
        ppo::Tokens,
        remax::remax_loss,
    },
    setup::Base,
};

/// kB under `key` in this process's status; 0 where there is no such file.
fn status(key: &str) -> f64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0.0)
}

fn rows(tensor: &Tensor) -> Vec<Vec<u32>> {
    tensor.to_dtype(DType::U32).and_then(|t| t.to_vec2()).expect("token ids")
}

/// The sequences, and the advantage of each (none: cross-entropy).
fn sequences(inputs: &BTreeMap<String, Tensor>, shape: &str) -> (Vec<Sequence>, Option<Vec<f32>>) {
    if shape == "packed" {
        let whole = rows(&inputs["packed"]).into_iter();
        let split = |tokens: Vec<u32>| Sequence {
            prompt: tokens[..1].to_vec(),
            response: tokens[1..].to_vec(),
            active_from: None,
        };
        return (whole.map(split).collect(), None);
    }
    let (prompts, responses) = (rows(&inputs["prompts"]), rows(&inputs["responses"]));
    let samples = responses.len() / prompts.len();
    let prompts = prompts.iter().flat_map(|prompt| std::iter::repeat_n(prompt, samples));
    let sequences = prompts
        .zip(&responses)
        .map(|(prompt, response)| Sequence {
            prompt: prompt.clone(),
            response: response.clone(),
            active_from: None,
        })
        .collect();
    (sequences, Some(inputs["advantages"].to_vec1().expect("advantages")))
}

/// The loss of log-probabilities `[tokens]`.
fn loss(log_probs: &Tensor, packed: &Packed, advantages: Option<&[f32]>) -> Tensor {
    let Some(advantages) = advantages else {
        return log_probs.mean_all().and_then(|mean| mean.neg()).expect("a loss");
    };
    let each = packed.spans.iter().zip(advantages);
    let each: Vec<f32> = each.flat_map(|(span, a)| span.clone().map(|_| *a)).collect();
    let each = Tensor::from_vec(each, log_probs.dims(), &Device::Cpu).expect("advantages");
    let ones = log_probs.ones_like().expect("a mask");
    let tokens = Tokens::over(&ones, advantages.len() as f64).expect("responses");
    remax_loss(log_probs, &each, &tokens).expect("a loss").loss
}

fn main() {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [base, directory, shape, repeats, options @ ..] = &arguments[..] else {
        println!(
            "usage: cargo bench --workspace --bench update -- BASE DIR packed|rloo REPEATS [recompute] [bf16]"
        );
        return;
    };
    let inputs = load(Path::new(directory).join("inputs.safetensors"), &Device::Cpu);
    let inputs: BTreeMap<String, Tensor> = inputs.expect("the inputs").into_iter().collect();
    let targets = ["q_proj", "k_proj", "v_proj", "o_proj"].map(str::to_owned).to_vec();
    let targets = Some(targets);
    let lora = LoraConfig { rank: 16, alpha: 32.0, targets, ..LoraConfig::default() };
    let base = Base::open(Path::new(base)).expect("the base model");
    let policy = Policy::new(&base.model, &base.weights, &lora, &Device::Cpu, 1).expect("a policy");
    let wanted = |name: &str| options.iter().any(|option| option == name);
    let precision = if wanted("bf16") { Precision::Bf16 } else { Precision::F32 };
    let policy = policy.recomputing(wanted("recompute")).in_precision(precision);
    let policy = policy.expect("bf16 weights");
    drop(base);
    policy.restore(&inputs).expect("the factors");
    let mut optimizer =
        AdamW::new(policy.variables(), AdamWConfig::default()).expect("an optimiser");
    let (sequences, advantages) = sequences(&inputs, shape);
    let packed = pack(&sequences);
    // The peak starts anew.
    fs::write("/proc/self/clear_refs", "5").expect("a Linux system");
    let before = status("VmRSS");
    let (mut forward, mut backward, mut losses, mut norms) = (vec![], vec![], vec![], vec![]);
    for _ in 0..repeats.parse().expect("a number of updates") {
        let start = Instant::now();
        let pass = policy.forward(&packed, 0).expect("hidden states");
        let scored = policy.log_probs(&pass.hidden, &packed.targets, 1.0);
        let scored = scored.expect("log-probabilities").values;
        let loss = loss(&scored, &packed, advantages.as_deref());
        losses.push(loss.to_scalar::<f32>().expect("a number"));
        forward.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        let mut grads = loss.backward().expect("gradients");
        pass.backward(&policy, &mut grads).expect("gradients");
        optimizer.accumulate(&grads).expect("gradients");
        norms.push(optimizer.step(1e-4).expect("a step"));
        backward.push(start.elapsed().as_secs_f64());
    }
    let report = serde_json::json!({
        "forward_s": forward, "backward_s": backward, "losses": losses, "grad_norms": norms,
        "rows": packed.batch.tokens.len(),
        "before_mib": before / 1024.0, "peak_mib": status("VmHWM") / 1024.0,
        "threads": rayon::current_num_threads(),
    });
    println!("{report}");
}
