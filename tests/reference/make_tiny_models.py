"""Tiny random checkpoints of the Llama family with transformers' own logits.

    python tests/reference/make_tiny_models.py tests/fixtures/models [NAME ...]

Each folder holds config.json, model.safetensors (f32) and reference.safetensors: for sequence i,
tokens.i int64 [length] and logits.i f32 [length, vocab]; versions.json has the seed, and the versions
that made each.
"""

import json
import pathlib
import sys

import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

SEED = 20261121
LENGTHS = [37, 11, 1]

COMMON = dict(
    num_hidden_layers=2,
    max_position_embeddings=128,
    rms_norm_eps=1e-5,
    bos_token_id=1,
    eos_token_id=2,
    attn_implementation="eager",
)


def rope(theta=10000.0, **more):
    return {"rope_type": "default", "rope_theta": theta, **more}


MODELS = {
    # Widths that no vector length divides: every remainder path runs.
    "llama2": LlamaConfig(
        hidden_size=52, intermediate_size=90, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=161, rope_parameters=rope(), tie_word_embeddings=False, **COMMON,
    ),
    "llama3": LlamaConfig(
        hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=128, tie_word_embeddings=False,
        rope_parameters=rope(
            500000.0, rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=16,
        ), **COMMON,
    ),
    "llama-bias": LlamaConfig(
        hidden_size=32, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=128, attention_bias=True, mlp_bias=True, tie_word_embeddings=False,
        rope_parameters=rope(rope_type="linear", factor=2.0), **COMMON,
    ),
    "smollm2": LlamaConfig(
        hidden_size=72, intermediate_size=48, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=160, rope_parameters=rope(100000.0), tie_word_embeddings=True,
        **COMMON,
    ),
    "qwen2-tied": Qwen2Config(
        hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=144, rope_parameters=rope(1000000.0), tie_word_embeddings=True, **COMMON,
    ),
    "qwen2-window": Qwen2Config(
        hidden_size=48, intermediate_size=80, num_attention_heads=3, num_key_value_heads=1,
        vocab_size=128, rope_parameters=rope(), tie_word_embeddings=False,
        use_sliding_window=True, sliding_window=7, max_window_layers=1, **COMMON,
    ),
    "qwen3": Qwen3Config(
        hidden_size=48, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, vocab_size=144, rope_parameters=rope(1000000.0), tie_word_embeddings=True,
        **COMMON,
    ),
    "mistral": MistralConfig(
        hidden_size=64, intermediate_size=88, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=128, rope_parameters=rope(), tie_word_embeddings=False, sliding_window=8,
        **COMMON,
    ),
    # Of four layers, every fourth one does not rotate.
    "smollm3": SmolLM3Config(
        hidden_size=48, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=128, rope_parameters=rope(2000000.0), tie_word_embeddings=True, pad_token_id=0,
        **{**COMMON, "num_hidden_layers": 4},
    ),
    "smollm3-window": SmolLM3Config(
        hidden_size=48, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=128, rope_parameters=rope(), tie_word_embeddings=False, pad_token_id=0,
        attention_bias=True, no_rope_layers=[0, 1], use_sliding_window=True, sliding_window=6,
        **COMMON,
    ),
    "olmo2": Olmo2Config(
        hidden_size=48, intermediate_size=80, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=128, rope_parameters=rope(500000.0), tie_word_embeddings=False, **COMMON,
    ),
    "granite": GraniteConfig(
        hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=128, rope_parameters=rope(), tie_word_embeddings=True, embedding_multiplier=3.0,
        attention_multiplier=0.0625, residual_multiplier=0.4, logits_scaling=2.5, **COMMON,
    ),
    # Three of four layers have a window and rotary constants of their own.
    "gemma3": Gemma3TextConfig(
        hidden_size=48, intermediate_size=80, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, vocab_size=144, query_pre_attn_scalar=24, sliding_window=9,
        layer_types=["sliding_attention"] * 2 + ["full_attention", "sliding_attention"],
        **{**COMMON, "num_hidden_layers": 4},
    ),
    # Stretched from 16 to 128 tokens.
    "qwen2-yarn": Qwen2Config(
        hidden_size=64, intermediate_size=80, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=128, tie_word_embeddings=True, rope_parameters=rope(
            rope_type="yarn", factor=8.0, original_max_position_embeddings=16, beta_fast=4.0,
            beta_slow=0.5,
        ), **COMMON,
    ),
    "phi3": Phi3Config(
        hidden_size=48, intermediate_size=72, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=128, rope_parameters=rope(), tie_word_embeddings=False, sliding_window=9,
        pad_token_id=0, **COMMON,
    ),
    # As Phi-4-mini: 12 of 16 values of a head rotate. All sequences are within the original context.
    "phi4-mini": Phi3Config(
        hidden_size=64, intermediate_size=72, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=144, tie_word_embeddings=True, original_max_position_embeddings=40, pad_token_id=0,
        rope_parameters=rope(
            rope_type="longrope", partial_rotary_factor=0.75,
            short_factor=[1.0, 1.1, 1.25, 1.5, 1.75, 2.0], long_factor=[1.0, 2.0, 3.0, 5.0, 8.0, 9.0],
        ), **COMMON,
    ),
    # Caps so low that they bend scores and logits.
    "gemma2": Gemma2Config(
        hidden_size=48, intermediate_size=80, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, vocab_size=144, query_pre_attn_scalar=24, sliding_window=9,
        rope_parameters=rope(), attn_logit_softcapping=2.0, final_logit_softcapping=3.0,
        **{**COMMON, "num_hidden_layers": 3},
    ),
    "gemma": GemmaConfig(
        hidden_size=48, intermediate_size=80, num_attention_heads=4, num_key_value_heads=1,
        head_dim=16, vocab_size=144, rope_parameters=rope(), **COMMON,
    ),
    # Three of four layers have a window, and rotate without the scaling of the fourth.
    "olmo3": Olmo3Config(
        hidden_size=48, intermediate_size=80, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=128, tie_word_embeddings=False, sliding_window=8, pad_token_id=0, rope_parameters={
            "full_attention": rope(
                500000.0, rope_type="yarn", factor=8.0, original_max_position_embeddings=16,
            ),
            "sliding_attention": rope(500000.0),
        }, **{**COMMON, "num_hidden_layers": 4},
    ),
    # The first of three layers is dense; the weights of a token's experts sum to less than 1.
    "qwen3-moe": Qwen3MoeConfig(
        hidden_size=32, intermediate_size=56, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        vocab_size=128, rope_parameters=rope(), tie_word_embeddings=False, mlp_only_layers=[0],
        moe_intermediate_size=20, num_experts=6, num_experts_per_tok=3, norm_topk_prob=False,
        **{**COMMON, "num_hidden_layers": 3},
    ),
    "mixtral": MixtralConfig(
        hidden_size=32, intermediate_size=40, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=128, rope_parameters=rope(), tie_word_embeddings=False, num_local_experts=4,
        num_experts_per_tok=2, sliding_window=12, **COMMON,
    ),
}

# transformers 4 wrote theta and scaling apart: some fixtures keep that form.
AS_VERSION_4 = {"llama3", "smollm2", "mistral"}


def config_json(name, model):
    config = model.config.to_diff_dict()
    config.pop("attn_implementation", None)
    config["dtype"] = "float32"
    if name in AS_VERSION_4:
        parameters = config.pop("rope_parameters")
        config["rope_theta"] = parameters.pop("rope_theta")
        config["rope_scaling"] = None if parameters["rope_type"] == "default" else parameters
        config["torch_dtype"] = config.pop("dtype")
        config.pop("layer_types", None)
    return config


def main(out, names):
    path = out / "versions.json"
    versions = json.loads(path.read_text()) if path.exists() else {"seed": SEED}
    for index, (name, config) in enumerate(MODELS.items()):
        if names and name not in names:
            continue
        generator = torch.Generator().manual_seed(SEED + index)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if "norm" in key and config.model_type.startswith("gemma"):
                    parameter.copy_(0.3 * noise)
                elif "norm" in key:
                    parameter.copy_(1 + 0.3 * noise)
                elif parameter.ndim == 1:
                    parameter.copy_(0.3 * noise)
                else:
                    parameter.copy_(noise * 1.2 / parameter.shape[-1] ** 0.5)
            reference = {}
            for i, length in enumerate(LENGTHS):
                tokens = torch.randint(config.vocab_size, (length,), generator=generator)
                reference[f"tokens.{i}"] = tokens
                reference[f"logits.{i}"] = model(tokens[None]).logits[0].contiguous()
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(config_json(name, model), indent=2, sort_keys=True) + "\n"
        # Experts go to disk one by one, whatever they are in memory.
        model.save_pretrained(folder)
        for surplus in ("config.json", "generation_config.json"):
            (folder / surplus).unlink(missing_ok=True)
        save_file(reference, folder / "reference.safetensors")
        (folder / "config.json").write_text(text)
        print(name, sum((folder / f).stat().st_size for f in ["model.safetensors", "reference.safetensors"]))
        versions[name] = {"torch": torch.__version__, "transformers": transformers.__version__}
    path.write_text(json.dumps(versions, indent=2) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2:])
