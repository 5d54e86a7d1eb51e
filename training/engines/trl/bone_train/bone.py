"""bone.json: what a backbone says of itself."""

import hashlib
import json
import pathlib

from . import settings

WEIGHTS = "adapter_model.safetensors"
SUFFIXES = (".safetensors", ".bin")


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(directory):
    """Digests of the weight files in a directory, by name."""
    files = sorted(path for path in pathlib.Path(directory).iterdir() if path.suffix in SUFFIXES)
    return {path.name: digest(path) for path in files}


def belongs(state, config, backbone):
    """Refuses a reward service of another backbone, or of another configuration."""
    column = settings.column(config, backbone)
    near = len(state["column"]) == len(column) and all(abs(a - b) < 1e-9 for a, b in zip(state["column"], column))
    for what, right, expected in (
        ("backbone", state["backbone"] == backbone, backbone),
        ("objectives", state["objectives"] == settings.objectives(config), settings.objectives(config)),
        ("column", near, column),
    ):
        if not right:
            settings.refuse(f"{what} of the reward service", state[what], f"{expected}, as in the configuration")


def describe(config, backbone, state, *, base, sft, weights, steps, kl, engine):
    """The contents of bone.json; `state` is the reward service's after the last step, `base`, `sft` and
    `weights` are directories."""
    return {
        "format": 1,
        "backbone": backbone,
        "objective": backbone,
        "objectives": [
            {key: objective[key] for key in ("name", "description", "reward") if key in objective}
            for objective in config["objectives"]
        ],
        "column": settings.column(config, backbone),
        "realised": state["realised"] if config["balance"]["strategy"] != "average" else None,
        "standardiser": state["standardiser"],
        "balance": {key: value for key, value in config["balance"].items() if value is not None},
        "seed": config["seed"],
        "shared_a": config["lora"]["shared"],
        "steps": steps,
        "kl": {"coefficient": config["rl"]["kl"], "last": kl},
        "activation": config["lora"]["activation"],
        "base": {"name": config["base"], "sha256": digests(base)},
        "sft": digests(sft) if sft else None,
        "weights": digests(weights),
        "engine": engine,
    }


def write(bone, directory):
    path = pathlib.Path(directory) / "bone.json"
    path.write_text(json.dumps(bone, indent=2, allow_nan=False) + "\n")
