"""What remains of a merged change at smaller ranks, by numpy's SVD of ΔW itself.

    python tests/reference/make_truncated.py

Reads tests/fixtures/soup-tiny (three adapters by hand of PEFT's formula) and writes
tests/fixtures/truncated.json: for some c and rank, relative errors of all modules together and of the
module that loses most.
"""

import json
import pathlib
import re

import numpy
from safetensors.numpy import load_file

FIXTURES = pathlib.Path(__file__).resolve().parents[1] / "fixtures"
SOUP = FIXTURES / "soup-tiny"
NAMES = ["helpful", "harmless", "brief"]
# μ, of which λ = B⁻¹μ follows with B of 0.7 on the diagonal and 0.15 beside it.
CASES = [([1, 1, 1], 8), ([1, 1, 1], 2), ([0, 0, 1], 4), ([1, 2, 3], 1), ([1, 2, 3], 100)]


def change(name):
    """ΔW of every adapted module, f64."""
    folder = SOUP / "backbones" / name
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    out = {}
    for key, down in tensors.items():
        if not key.endswith("lora_A.weight"):
            continue
        module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        pattern = lambda table, default: next(
            (value for key, value in (config.get(table) or {}).items() if re.match(rf"(.*\.)?({key})$", module)),
            default,
        )
        rank = pattern("rank_pattern", config["r"])
        alpha = pattern("alpha_pattern", config["lora_alpha"])
        scale = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
        up = tensors[key.replace("lora_A", "lora_B")]
        out[module] = scale * up.astype(float) @ down.astype(float)
    return out


def main():
    changes = [change(name) for name in NAMES]
    matrix = numpy.full((3, 3), 0.15) + 0.55 * numpy.eye(3)
    cases = []
    for mu, rank in CASES:
        c = numpy.linalg.solve(matrix, numpy.array(mu) / sum(mu))
        lost, every, largest = 0.0, 0.0, (0.0, "")
        for module in sorted(set().union(*changes)):
            delta = sum(weight * one[module] for weight, one in zip(c, changes) if module in one)
            squares = numpy.linalg.svd(delta, compute_uv=False) ** 2
            lost, every = lost + squares[rank:].sum(), every + squares.sum()
            largest = max(largest, ((squares[rank:].sum() / squares.sum()) ** 0.5, module))
        cases.append({
            "preference": mu, "rank": rank, "error": (lost / every) ** 0.5, "largest_error": largest[0],
            "largest_module": largest[1],
        })
    (FIXTURES / "truncated.json").write_text(json.dumps({"numpy": numpy.__version__, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
