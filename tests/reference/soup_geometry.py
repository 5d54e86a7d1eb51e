"""Distances, angles and subspaces of the tiny soups, from dense matrices, for src/soup/geometry.rs.

    python tests/reference/soup_geometry.py > tests/fixtures/soup-geometry.json
"""

import json
import pathlib
import tomllib

import numpy
import torch
from safetensors.torch import load_file

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"


def weights(directory):
    tensors = {}
    for path in sorted(directory.glob("*.safetensors")):
        tensors |= {name: tensor.double() for name, tensor in load_file(path).items()}
    return tensors


def adapter(directory):
    """Dense changes by tensor, replaced tensors, and A by module."""
    config = json.loads((directory / "adapter_config.json").read_text())
    stored = weights(directory)
    deltas, replaced, downs = {}, {}, {}
    for name, tensor in stored.items():
        module = name.removeprefix("base_model.model.")
        if module.endswith(".lora_A.weight"):
            module = module.removesuffix(".lora_A.weight")
            up = stored[name.replace("lora_A", "lora_B")]
            rank = tensor.shape[0]
            pattern = config.get("alpha_pattern") or {}
            alpha = next((v for k, v in pattern.items() if module.endswith(k)), config["lora_alpha"])
            scale = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
            deltas[module + ".weight"] = scale * up @ tensor
            downs[module] = tensor
        elif ".lora_B." not in module:
            replaced[module] = tensor
    return deltas, replaced, downs


def main():
    result = {"versions": {"numpy": numpy.__version__, "torch": torch.__version__}, "soups": {}}
    for name in ("soup-tiny", "soup-tiny-full", "soup-tiny-mixed"):
        root = FIXTURES / name
        manifest = tomllib.loads((root / "soup.toml").read_text())
        base = weights(root / manifest["base"]["path"])
        start = dict(base)
        if "sft" in manifest:
            deltas, replaced, _ = adapter(root / manifest["sft"]["path"])
            start |= replaced
            for key, delta in deltas.items():
                start[key] = start[key] + delta
        changes, downs = [], []
        for entry in manifest["backbones"]:
            directory = root / entry["path"]
            if entry["kind"] == "full":
                full = weights(directory)
                changes.append({k: full[k] - start[k] for k in start})
                downs.append(None)
            else:
                deltas, replaced, a = adapter(directory)
                for key, tensor in replaced.items():
                    deltas[key] = tensor - start[key]
                changes.append(deltas)
                downs.append(a)
        flat = [torch.cat([c.get(k, torch.zeros_like(start[k])).flatten() for k in sorted(start)]) for c in changes]
        gram = numpy.array([[float(a @ b) for b in flat] for a in flat])
        norms = numpy.sqrt(numpy.diag(gram))
        n = len(flat)
        mixing = manifest["mixing"]
        if mixing.get("mapping") == "realised":
            matrix = numpy.array(mixing["realised"])
        elif "matrix" in mixing:
            matrix = numpy.array(mixing["matrix"])
        else:
            off = (1 - mixing["beta"]) / (n - 1)
            matrix = numpy.full((n, n), off) + (mixing["beta"] - off) * numpy.eye(n)
        corners = numpy.linalg.inv(matrix)
        amplification = [float(numpy.sqrt(c @ gram @ c) / norms[i]) for i, c in enumerate(corners.T)]
        overlaps = None
        if all(a is not None for a in downs):
            bases = [{m: numpy.linalg.svd(a.numpy(), full_matrices=False)[2].T for m, a in one.items()} for one in downs]

            def overlap(a, b):
                common = a.keys() & b.keys()
                each = [((a[m].T @ b[m]) ** 2).sum() / min(a[m].shape[1], b[m].shape[1]) for m in common]
                return float(numpy.mean(each))

            overlaps = [[overlap(a, b) for b in bases] for a in bases]
        result["soups"][name] = {
            "norms": norms.tolist(),
            "cosines": (gram / numpy.outer(norms, norms)).tolist(),
            "overlaps": overlaps,
            "amplification": amplification,
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
