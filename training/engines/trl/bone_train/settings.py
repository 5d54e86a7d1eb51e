"""The configuration of a run: the TOML that `train-backbones` reads.

What TRL cannot do is refused by the name of its setting. Settings that change no result (`rollout.slots`,
`rl.rows`, `rl.prompt_cache_mib`) are taken and not used."""

import tomllib


class SettingsError(ValueError):
    """A setting that cannot be honoured, by name."""


# The settings that are read here, with the defaults of training/src/config; `...` marks what is required.
# A test compares them with a configuration that `train-backbones` has written out.
DEFAULTS = {
    "name": ...,
    "seed": 1,
    "base": ...,
    "precision": "f32",
    "data": {
        "name": None, "rewards": None, "format": ..., "train": ..., "validation": None, "test": None, "split": None,
        "template": None, "reference": None, "id": None, "malformed": "fail", "documents": 5, "max_prompt_tokens": 512,
    },
    "lora": {
        "rank": 64, "alpha": 128.0, "dropout": 0.0, "shared": True, "activation": "all", "targets": None,
    },
    "optimizer": {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.0, "max_grad_norm": 0.5},
    "rollout": {"temperature": 1.0, "max_new_tokens": 64, "slots": 32, "samples": 1},
    "rl": {
        "algorithm": "ppo", "steps": 100, "batch": 64, "minibatch": 16, "epochs": 4, "rows": 2048, "recompute": False,
        "prompt_cache_mib": None, "learning_rate": 1e-5, "decay": "linear", "decay_steps": None, "keep": [],
        "kl": 0.2, "kl_target": 3.0, "kl_horizon": 10000.0, "kl_stop": 5.0, "gamma": 1.0, "lambda": 0.95, "clip": 0.2,
        "value_weight": 0.1, "value_rate": 10.0, "advantage_clip": 20.0, "standardise_on": 200, "checkpoint_every": 5,
    },
    "balance": {
        "strategy": "average", "normalisation": None, "every": 10, "shift": 1.0, "floor": 1e-3, "lead": None,
    },
}
# Settings of `rl` that these trainers do not read: PPO's, and an adaptive KL coefficient's.
UNREAD = ("minibatch", "epochs", "kl_horizon", "kl_stop", "lambda", "clip", "value_weight", "value_rate")
# What torch calls the precisions.
DTYPES = {"f32": "float32", "bf16": "bfloat16"}
# Sections whose settings `train-backbones` checks: here they are only passed on.
OTHERS = {"sft": None, "mixing": {"beta": 0.6}, "objectives": ...}


def read(path, changes=()):
    """The configuration in `path`, with every default filled in; `changes` are `key=value` with TOML values."""
    with open(path, "rb") as file:
        table = tomllib.load(file)
    for change in changes:
        apply(table, change)
    return resolve(table)


def apply(table, change):
    key, equals, text = change.partition("=")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"--set {change}: expected key=value with a TOML value") from error
    *sections, last = key.split(".")
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise SettingsError(f"--set {change}: {section} is no table")
    if not equals or not last:
        raise SettingsError(f"--set {change}: expected key=value")
    table[last] = value


def resolve(table):
    """Fills in the defaults and refuses keys that are unknown or missing, and values that no trainer here honours."""
    if isinstance(table.get("data"), list):
        refuse("data", f"{len(table['data'])} data sets", "one [data]: TRL's batches here hold one type of task")
    config = {name: table.get(name, default) for name, default in OTHERS.items()}
    for name in table:
        if name not in DEFAULTS and name not in OTHERS:
            refuse(name, "given", f"one of {', '.join([*DEFAULTS, *OTHERS])}")
    for name, default in DEFAULTS.items():
        if isinstance(default, dict):
            given = table.get(name, {})
            for key in given:
                if key not in default:
                    refuse(f"{name}.{key}", "given", f"one of {', '.join(default)}")
            config[name] = {**default, **given}
        else:
            config[name] = table.get(name, default)
    for name, value in config.items():
        parts = value.items() if isinstance(value, dict) else ()
        for key, inner in [("", value), *((f".{key}", inner) for key, inner in parts)]:
            if inner is ...:
                refuse(name + key, "missing", "a value")
    check(config)
    return config


def check(config):
    """Refuses by name what these trainers cannot do."""
    data, lora, rl, samples = (config[name] for name in ("data", "lora", "rl", "rollout"))
    samples = samples["samples"]
    names = [objective.get("name") for objective in config["objectives"]]
    expected = [
        ("precision", config["precision"], config["precision"] in list(DTYPES), '"f32" or "bf16"'),
        ("rl.algorithm", rl["algorithm"], rl["algorithm"] == "rloo", '"rloo" (--trainer grpo for GRPO in its place)'),
        ("rl.kl_target", rl["kl_target"], rl["kl_target"] == 0, "0: TRL's KL coefficient is fixed"),
        ("rl.gamma", rl["gamma"], rl["gamma"] == 1, "1: TRL discounts no rewards"),
        ("rl.decay", rl["decay"], rl["decay"] in ("linear", "constant"), '"linear" or "constant"'),
        ("rl.decay_steps", rl["decay_steps"], rl["decay_steps"] in (None, rl["steps"]), "left out, or rl.steps"),
        ("rl.keep", rl["keep"], not rl["keep"], "left out: snapshots are train-backbones' own"),
        ("rl.batch", rl["batch"], rl["batch"] % samples == 0, "a multiple of rollout.samples"),
        ("rollout.samples", samples, samples >= 2, "at least 2: the others are the baseline"),
        ("balance.strategy", config["balance"]["strategy"], config["balance"]["strategy"] != "gdpo",
         '"average", "inverse" or "delta": no reward is scaled within a group'),
        ("lora.shared", lora["shared"], lora["shared"] is True, "true: TRL draws A from the run's seed"),
        ("lora.targets", lora["targets"], lora["targets"] != [], "at least one, or left out: all linear layers of the base"),
        ("lora.activation", lora["activation"], lora["activation"] in ("all", "answer"), '"all" or "answer"'),
        ("data.format", data["format"], data["format"] in ("jsonl", "scitldr"),
         '"jsonl" or "scitldr": write other rows as jsonl'),
        ("data.split", data["split"], data["split"] is None, "left out: give the rows to train on as a file"),
        ("data.rewards", data["rewards"], data["rewards"] in (None, names), "left out: every objective judges every row"),
        ("data.malformed", data["malformed"], data["malformed"] == "fail", '"fail": a malformed row is an error here'),
        ("data.template", data["template"], data["format"] != "jsonl" or data["template"] is not None,
         "a template of the prompt with format jsonl"),
        ("data.documents", data["documents"], data["documents"] == DEFAULTS["data"]["documents"], "left out: it is of format alce"),
        *((f"data.{key}", data[key], data[key] is None or data["format"] == "jsonl", "left out unless the format is jsonl")
          for key in ("reference", "id")),
        *((f"rl.{key}", rl[key], rl[key] == DEFAULTS["rl"][key], "left out: no trainer here reads it") for key in UNREAD),
    ]
    for key, value, holds, right in expected:
        if not holds:
            refuse(key, repr(value), right)


def refuse(key, got, expected):
    raise SettingsError(f"{key} is {got}, expected {expected}")


def objectives(config):
    return [objective["name"] for objective in config["objectives"]]


def column(config, backbone):
    """The column of B that trains `backbone`, with the sum 1."""
    names, mixing = objectives(config), config["mixing"]
    if "weights" in mixing:
        refuse("mixing.weights", mixing["weights"], "beta, matrix or identity: bones are the backbones of a soup")
    if backbone not in names:
        refuse("--backbone", repr(backbone), f"one of {', '.join(names)}")
    own = names.index(backbone)
    if "matrix" in mixing:
        weights = [row[own] for row in mixing["matrix"]]
    else:
        beta = 1.0 if mixing.get("identity") else mixing["beta"]
        weights = [beta if index == own else (1 - beta) / (len(names) - 1) for index in range(len(names))]
    return [weight / sum(weights) for weight in weights]
