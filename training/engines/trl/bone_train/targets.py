"""The layers that adapters are on."""

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM

from . import settings


def bare(base):
    """The network of a base's directory, without its weights."""
    with init_empty_weights():
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))


def of(config, model):
    """PEFT's `target_modules`: last names of the configuration, each of which a layer of `model` must have; left out,
    all linear layers but the output head."""
    given = config["lora"]["targets"]
    if given is None:
        return "all-linear"
    modules = dict(model.named_modules())
    known = list(dict.fromkeys(name.rpartition(".")[2] for name, module in modules.items() if isinstance(module, torch.nn.Linear)))
    # The experts of a mixture are parameters, which PEFT finds by the names of the layers that they were.
    mixture = any(name.endswith(".experts") for name in modules)
    for target in given:
        # PEFT adapts what it finds and says nothing of the others.
        if target not in known and not mixture:
            settings.refuse("lora.targets", target, f"linear layers of the base, {', '.join(known)}, or left out: all but the output head")
    return given
