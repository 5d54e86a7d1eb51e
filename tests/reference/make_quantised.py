"""Makes tests/fixtures/quantised.safetensors: what the gguf package reads back from the blocks that it
makes of some values, and products of whole numbers with blocks in GGUF files.

    python tests/reference/make_quantised.py tests/fixtures/quantised.safetensors tests/fixtures/gguf

Tensors:
- `values` [16, 64] f32, and for each type that the package makes `TYPE.values` (dequantised). The
  rows: normal values of several sizes, zeros, one spike, a constant, values half-way between two
  codes, only positive ones, scales that are subnormal in f16.
- `x` [3, 256] f32: whole numbers whose largest magnitude is 127 in each run of 16, so that rounding
  them to bytes changes nothing.
- `FILE/TENSOR` [3, 16] f32: x times the first 16 rows (of the checkpoint's) of a tensor of the file
  under its name there, dequantised by the package and summed in f64. The storage type is in `__metadata__`.
"""

import importlib.metadata
import sys
from pathlib import Path

import gguf
import numpy
from gguf import GGMLQuantizationType as Q
from safetensors.numpy import save_file

SEED = 20261122
# All storage types of blocks. The heads of q and k of a llama have their rows in interleaved order.
PRODUCTS = {
    "tiny-llama.gguf": ["token_embd", "blk.0.attn_k", "blk.0.attn_v", "blk.0.attn_output", "blk.0.ffn_gate", "blk.0.ffn_up", "blk.0.ffn_down"],
    "tiny-qwen2.gguf": ["output", "blk.0.attn_k", "blk.0.ffn_up"],
    "tiny-granite.gguf": ["blk.0.attn_output", "blk.0.ffn_gate", "blk.0.ffn_up", "blk.0.ffn_down"],
}


def main() -> None:
    rng = numpy.random.default_rng(SEED)
    values = rng.normal(0, 1, (16, 64)).astype(numpy.float32)
    values[0:4] *= numpy.float32([[0.02], [0.5], [30.0], [20000.0]])
    values[4] = 0
    values[5] = 0
    values[5, [7, 40]] = [-3.5, 0.25]
    values[6] = 1.75
    values[7, :32] = numpy.float32(numpy.arange(32) - 15.5) * 2  # halves under every scale below
    values[7, 0], values[7, 32] = 127, -8
    values[7, 33:] = numpy.float32(numpy.arange(31) - 15) / 2
    values[8] = numpy.abs(values[8])
    values[9] *= 2.0**-22
    values[10] = -numpy.abs(values[10])
    tensors = {"values": values}
    for kind in (Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1):
        data = gguf.quantize(values, kind)
        tensors[f"{kind.name.lower()}.values"] = gguf.dequantize(data, kind).astype(numpy.float32)
    x = rng.integers(-126, 127, (3, 256)).astype(numpy.float32)
    x[:, ::16] = rng.choice([-127, 127], (3, 16))
    tensors["x"] = x
    kinds = {}
    for file, names in PRODUCTS.items():
        stored = {tensor.name: tensor for tensor in gguf.GGUFReader(Path(sys.argv[2]) / file).tensors}
        for name in names:
            tensor = stored[f"{name}.weight"]
            step = 2 if file == "tiny-llama.gguf" and name == "blk.0.attn_k" else 1
            w = gguf.dequantize(tensor.data, tensor.tensor_type)[: 16 * step : step]
            tensors[f"{file}/{name}"] = (x.astype(numpy.float64) @ w.T.astype(numpy.float64)).astype(numpy.float32)
            kinds[f"{file}/{name}"] = tensor.tensor_type.name
    versions = {name: importlib.metadata.version(name) for name in ("gguf", "numpy")}
    notes = {"made by": Path(__file__).name, "seed": str(SEED)} | versions | kinds
    save_file(tensors, sys.argv[1], metadata=notes)


if __name__ == "__main__":
    main()
