"""Makes tests/fixtures/quantised.safetensors: what the gguf package makes of some values in each
block type, and what it reads back from its blocks.

    python tests/reference/make_quantised.py tests/fixtures/quantised.safetensors

Tensors: `values` [16, 64] f32; for each type `TYPE` (bytes of the blocks, row after row) and
`TYPE.values` (dequantised). The rows: normal values of several sizes, zeros, one spike, a constant,
values half-way between two codes, only positive ones, scales that are subnormal in f16.
"""

import importlib.metadata
import sys
from pathlib import Path

import gguf
import numpy
from gguf import GGMLQuantizationType as Q
from safetensors.numpy import save_file

SEED = 20261122


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
    for kind in (Q.Q8_0, Q.Q4_0, Q.Q4_1):
        name = kind.name.lower()
        data = gguf.quantize(values, kind)
        tensors[name] = data
        tensors[f"{name}.values"] = gguf.dequantize(data, kind).astype(numpy.float32)
    versions = {name: importlib.metadata.version(name) for name in ("gguf", "numpy")}
    notes = {"made by": Path(__file__).name, "seed": str(SEED)} | versions
    save_file(tensors, sys.argv[1], metadata=notes)


if __name__ == "__main__":
    main()
