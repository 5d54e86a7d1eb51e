"""Tiny packed checkpoints (GPTQ, AWQ, FP8 in blocks) and the weights that they stand for.

    python tests/reference/make_packed.py

Packs the base of tests/fixtures/soup-tiny by the formulas of AutoGPTQ, AutoAWQ and of transformers' FP8,
and dequantises what was packed with torch. Writes tests/fixtures/packed/NAME/: config.json,
model.safetensors (packed) and expected.json (sha256 of each linear weight in f32); versions.json.
"""

import hashlib
import json
import pathlib
import shutil

import safetensors
import torch
from safetensors.torch import load_file, save_file

SEED = 20261129
FIXTURES = pathlib.Path(__file__).resolve().parents[1] / "fixtures"
BASE, OUT = FIXTURES / "soup-tiny/base", FIXTURES / "packed"
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def pack(codes, bits, order=None):
    """Codes of the last axis into words, the first in the lowest bits."""
    each = 32 // bits
    order = order or range(each)
    words = torch.zeros(*codes.shape[:-1], codes.shape[-1] // each, dtype=torch.int64)
    for place, column in enumerate(order):
        words |= codes[..., column::each].long() << (place * bits)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def codes_of(weight, group_of, count, bits, symmetric):
    """Codes [in, out], zero points and scales [groups, out] of a weight [out, in]."""
    top = 2**bits - 1
    inputs = weight.T
    low = torch.stack([inputs[group_of == g].amin(0) for g in range(count)]).clamp(max=0)
    high = torch.stack([inputs[group_of == g].amax(0) for g in range(count)]).clamp(min=0)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    scales = ((high - low) / top).half()
    zeros = torch.full_like(low, 2 ** (bits - 1)) if symmetric else (-low / scales.float()).round().clamp(1, top)
    codes = (inputs / scales.float()[group_of] + zeros[group_of]).round().clamp(0, top)
    return codes, zeros, scales


def gptq(weight, bits, group, symmetric, act_order, generator):
    outputs, inputs = weight.shape
    count = inputs // group
    group_of = torch.arange(inputs) // group
    if act_order:
        group_of = group_of[torch.randperm(inputs, generator=generator)]
    codes, zeros, scales = codes_of(weight, group_of, count, bits, symmetric)
    packed = {
        "qweight": pack(codes.T, bits).T.contiguous(),
        # The format keeps zero points less one.
        "qzeros": pack(zeros - 1, bits),
        "scales": scales,
        "g_idx": group_of.to(torch.int32),
    }
    return packed, (scales.float()[group_of] * (codes - zeros[group_of])).T.contiguous()


def awq(weight, group):
    inputs = weight.shape[1]
    group_of = torch.arange(inputs) // group
    codes, zeros, scales = codes_of(weight, group_of, inputs // group, 4, False)
    packed = {"qweight": pack(codes, 4, AWQ_ORDER), "qzeros": pack(zeros, 4, AWQ_ORDER), "scales": scales}
    return packed, (scales.float()[group_of] * (codes - zeros[group_of])).T.contiguous()


def fp8(weight, block):
    rows, columns = (torch.arange(n) // b for n, b in zip(weight.shape, block))
    scales = torch.zeros(rows[-1] + 1, columns[-1] + 1)
    for r in range(scales.shape[0]):
        for c in range(scales.shape[1]):
            scales[r, c] = weight[rows == r][:, columns == c].abs().max() / 448
    spread = scales[rows][:, columns]
    stored = (weight / spread).to(torch.float8_e4m3fn)
    return {"weight": stored, "weight_scale_inv": scales}, stored.float() * spread


def make(name, settings, packer):
    folder = OUT / name
    folder.mkdir(parents=True)
    tensors, expected = {}, {}
    for key, tensor in load_file(BASE / "model.safetensors").items():
        module = key.removesuffix(".weight")
        if not module.endswith("_proj"):
            tensors[key] = tensor.half()
            continue
        parts, values = packer(tensor.float())
        tensors.update({f"{module}.{part}": value for part, value in parts.items()})
        expected[key] = hashlib.sha256(values.numpy().tobytes()).hexdigest()
    config = json.loads((BASE / "config.json").read_text()) | {"quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    generator = torch.Generator().manual_seed(SEED)
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 16, "sym": True, "desc_act": False}
    make("gptq", settings, lambda w: gptq(w, 4, 16, True, False, generator))
    settings |= {"bits": 8, "sym": False, "desc_act": True}
    make("gptq-act-order", settings, lambda w: gptq(w, 8, 16, False, True, generator))
    settings = {"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True, "version": "gemm"}
    make("awq", settings, lambda w: awq(w, 16))
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [24, 20]}
    make("fp8", settings, lambda w: fp8(w, (24, 20)))
    versions = {"seed": SEED, "torch": torch.__version__, "safetensors": safetensors.__version__}
    (OUT / "versions.json").write_text(json.dumps(versions) + "\n")


if __name__ == "__main__":
    main()
