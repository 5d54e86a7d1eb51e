"""What the references of LoRA training hold of a network with adapters; for generators beside it."""

import json
import pathlib

import peft
import torch
import transformers
from safetensors.torch import save_file

FIXTURES = pathlib.Path(__file__).resolve().parents[1] / "fixtures"


def adapted(base, settings):
    """A network with drawn factors, in float64."""
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, **settings))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.copy_(0.1 * torch.randn_like(parameter))
    return model.double()


def token_values(logits, sequences, temperature):
    """Log-probability and entropy of every response token; `logits` gives a sequence's rows of them."""
    logs, entropies = [], []
    for s in sequences:
        log_p = torch.log_softmax(logits(s) / temperature, -1)
        logs.append(log_p.gather(1, torch.tensor(s["response"])[:, None])[:, 0])
        entropies.append(-(log_p.exp() * log_p).sum(-1))
    return torch.cat(logs), torch.cat(entropies)


def references(model, logits, sequences):
    """Factors, values of each token with and without adapters, and the gradients of the factors of the
    mean of −log-probability at temperature 0.7."""
    factors = {n.replace(".default", ""): p for n, p in model.named_parameters() if "lora_" in n}
    out = {n: p.detach().float().clone() for n, p in factors.items()}
    with torch.no_grad():
        for temperature in [1, 0.7]:
            log_p, entropy = token_values(logits, sequences, temperature)
            out[f"log_probs.{temperature}"] = log_p.float()
            out[f"entropy.{temperature}"] = entropy.float()
        with model.disable_adapter():
            out["log_probs.reference"] = token_values(logits, sequences, 1)[0].float()
    (-token_values(logits, sequences, 0.7)[0].mean()).backward()
    out.update({f"grad.{n}": p.grad.float().clone() for n, p in factors.items()})
    return out


def write(name, out, seed, sequences):
    """Writes reference.safetensors and reference.json of a fixture."""
    folder = FIXTURES / "lora-training" / name
    folder.mkdir(parents=True, exist_ok=True)
    save_file(out, folder / "reference.safetensors")
    versions = {module.__name__: module.__version__ for module in (torch, transformers, peft)}
    settings = {"seed": seed, **versions, "sequences": sequences}
    (folder / "reference.json").write_text(json.dumps(settings) + "\n")
