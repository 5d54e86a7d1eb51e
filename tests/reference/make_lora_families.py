"""Reference values of LoRA training on the tiny models of further families: log-probabilities and
gradients of PEFT's factors, computed by torch in float64.

    OMP_NUM_THREADS=1 python tests/reference/make_lora_families.py

For each NAME, reads tests/fixtures/models/NAME and writes tests/fixtures/lora-training/NAME/:
reference.safetensors (factors `base_model.model.*`, gradients `grad.*`, values of each token) and
reference.json (sequences, seed, versions).
"""

import json
import pathlib
import sys

import peft
import torch
import transformers
from safetensors.torch import save_file

SEED = 20261129
FIXTURES = pathlib.Path(__file__).resolve().parents[1] / "fixtures"
NAMES = ["smollm3", "smollm3-window", "olmo2", "granite", "gemma3", "phi3", "gemma", "gemma2", "olmo3"]
LENGTHS = [(5, 3), (70, 21), (1, 1), (12, 9)]  # one sequence is longer than an attention block
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]


def token_values(model, sequences, temperature):
    """Log-probability and entropy of every response token, over all sequences."""
    logs, entropies = [], []
    for s in sequences:
        ids = torch.tensor([s["prompt"] + s["response"]])
        logits = model(input_ids=ids).logits[0, len(s["prompt"]) - 1 : -1] / temperature
        log_p = torch.log_softmax(logits, -1)
        logs.append(log_p.gather(1, torch.tensor(s["response"])[:, None])[:, 0])
        entropies.append(-(log_p.exp() * log_p).sum(-1))
    return torch.cat(logs), torch.cat(entropies)


def main():
    for index, name in enumerate(NAMES):
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        torch.manual_seed(SEED + index)
        base = transformers.AutoModelForCausalLM.from_pretrained(
            FIXTURES / "models" / name, attn_implementation="eager", dtype=torch.float32
        )
        targets = FUSED if base.config.model_type == "phi3" else TARGETS
        lora = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=targets)
        model = peft.get_peft_model(base, lora)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    parameter.copy_(0.1 * torch.randn_like(parameter))
        model = model.double()
        factors = {n.replace(".default", ""): p for n, p in model.named_parameters() if "lora_" in n}
        out = {n: p.detach().float().clone() for n, p in factors.items()}
        vocabulary = base.config.vocab_size
        sequences = [
            {
                "prompt": torch.randint(3, vocabulary, (p,)).tolist(),
                "response": torch.randint(3, vocabulary, (r,)).tolist(),
            }
            for p, r in LENGTHS
        ]
        with torch.no_grad():
            for temperature in [1, 0.7]:
                log_p, entropy = token_values(model, sequences, temperature)
                out[f"log_probs.{temperature}"] = log_p.float()
                out[f"entropy.{temperature}"] = entropy.float()
            with model.disable_adapter():
                out["log_probs.reference"] = token_values(model, sequences, 1)[0].float()
        (-token_values(model, sequences, 0.7)[0].mean()).backward()
        out.update({f"grad.{n}": p.grad.float().clone() for n, p in factors.items()})
        folder = FIXTURES / "lora-training" / name
        folder.mkdir(parents=True, exist_ok=True)
        save_file(out, folder / "reference.safetensors")
        versions = {module.__name__: module.__version__ for module in (torch, transformers, peft)}
        settings = {"seed": SEED + index, **versions, "sequences": sequences}
        (folder / "reference.json").write_text(json.dumps(settings) + "\n")
        print(name, {n: round(float(p.grad.abs().max()), 5) for n, p in list(factors.items())[:3]})


if __name__ == "__main__":
    main()
