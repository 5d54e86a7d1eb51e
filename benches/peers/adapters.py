"""Writes rank-16 LoRA adapters with small random weights, in PEFT's format. The same seed gives the same bytes.

usage: adapters.py BASE OUT [--names helpful,harmless,brief] [--rank 16] [--seed 7]

BASE is a Hugging Face directory of a Llama-family model; only its config.json is read. Every linear
layer of every block is adapted. The factors are bf16. A row of A has norm 1 or so and B is scaled so
that the change of a weight is a few per cent of it: enough to change answers, not enough to break them.
"""

import argparse
import json
import pathlib

import numpy

B_STD = 0.01


def bf16(values):
    """The bytes of `values` (f32) rounded to bf16, ties to even."""
    bits = values.view(numpy.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(numpy.uint16).tobytes()


def save(path, tensors):
    """A safetensors file of `tensors` (f32), stored as bf16. numpy has no bf16, so by hand."""
    header = {"__metadata__": {"format": "pt"}}
    parts = {name: bf16(values) for name, values in tensors.items()}
    at = 0
    for name, part in parts.items():
        header[name] = {"dtype": "BF16", "shape": tensors[name].shape, "data_offsets": [at, at + len(part)]}
        at += len(part)
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(len(head).to_bytes(8, "little") + head + b"".join(parts.values()))


def shapes(config):
    """Module path within a block -> (outputs, inputs)."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    return {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }


def write(out, config, rank, rng):
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for path, (outputs, inputs) in shapes(config).items():
            name = f"base_model.model.model.layers.{layer}.{path}"
            factors = {
                "lora_A": rng.standard_normal((rank, inputs), numpy.float32) / numpy.float32(inputs**0.5),
                "lora_B": rng.standard_normal((outputs, rank), numpy.float32) * numpy.float32(B_STD),
            }
            tensors |= {f"{name}.{factor}.weight": values for factor, values in factors.items()}
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank,
        "target_modules": sorted(path.split(".")[1] for path in shapes(config)),
        "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "bias": "none", "lora_dropout": 0.0, "fan_in_fan_out": False, "inference_mode": True,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    save(out / "adapter_model.safetensors", tensors)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--names", default="helpful,harmless,brief")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    config = json.loads((arguments.base / "config.json").read_text())
    for index, name in enumerate(arguments.names.split(",")):
        write(arguments.out / name, config, arguments.rank, numpy.random.default_rng([arguments.seed, index]))


if __name__ == "__main__":
    main()
