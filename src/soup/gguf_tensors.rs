//! How the tensors of a GGUF file are named, ordered and scaled, against a Hugging Face checkpoint.

/// The checkpoint's name of a tensor, and the part of the layer that it belongs to.
pub fn checkpoint_name(gguf_name: &str) -> Option<(String, &str)> {
    match gguf_name {
        "token_embd.weight" => return Some(("model.embed_tokens.weight".to_owned(), "")),
        "output_norm.weight" => return Some(("model.norm.weight".to_owned(), "")),
        "output.weight" => return Some(("lm_head.weight".to_owned(), "")),
        _ => {}
    }
    let (layer, rest) = gguf_name.strip_prefix("blk.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let (part, kind) = rest.rsplit_once('.')?;
    let module = match part {
        "attn_norm" => "input_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    matches!(kind, "weight" | "bias")
        .then(|| (format!("model.layers.{layer}.{module}.{kind}"), part))
}

/// Rows `2d + j` of a head (pair d side by side) move to `j · half + d` (first halves, then second).
/// `values` are `heads · 2 · half` rows of `width`.
pub fn split_pairs(values: &[f32], heads: usize, width: usize) -> Vec<f32> {
    let half = values.len() / (heads * width * 2).max(1);
    let mut out = Vec::with_capacity(values.len());
    for head in values.chunks_exact((2 * half * width).max(1)) {
        for j in 0..2 {
            for row in head.chunks_exact(width).skip(j).step_by(2) {
                out.extend_from_slice(row);
            }
        }
    }
    out
}

/// Llama 3's divisors of the rotary frequencies θ^(−2d/D), for d in 0..D/2: none for wavelengths
/// below 8192/4, `factor` above 8192, and between them the blend that is linear in 1/wavelength.
pub fn llama3_factors(theta: f64, head_dim: usize, factor: f64) -> Vec<f64> {
    let (original, low, high) = (8192.0, 1.0, 4.0);
    (0..head_dim / 2)
        .map(|d| {
            let wavelength =
                2.0 * std::f64::consts::PI * theta.powf(2.0 * d as f64 / head_dim as f64);
            let smooth = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0);
            1.0 / ((1.0 - smooth) / factor + smooth)
        })
        .collect()
}
