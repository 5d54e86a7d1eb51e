"""Reference values of LoRA training on the tiny T5s: log-probabilities of responses, gradients of PEFT's
factors, and a value head on the decoder's last hidden states, computed by torch in float64.

    OMP_NUM_THREADS=1 python tests/reference/make_t5_training.py

For each NAME, reads tests/fixtures/soup-NAME/base and writes tests/fixtures/lora-training/NAME/:
reference.safetensors (factors `base_model.model.*`, gradients `grad.*`, values of each token, the value
head `value_head.*`) and reference.json (sequences, seed, versions). The decoder is given
`decoder_start_token_id` and the response but for its last token. The value loss is the mean of
(V - 1)² over all response tokens.
"""

import json
import pathlib

import peft
import torch
import transformers
from safetensors.torch import save_file

SEED = 20261130
FIXTURES = pathlib.Path(__file__).resolve().parents[1] / "fixtures"
NAMES = ["t5", "t5-gated"]
# Longer than a block of attention and than the last bucket begins; one prompt has two responses.
LENGTHS = [(5, 3), (100, 90), (1, 1), (12, 9)]
TARGETS = ["q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo"]


def rows(model, sequence):
    """Logits and last hidden states of the decoder, a row for each response token."""
    start = [model.config.decoder_start_token_id]
    out = model(
        input_ids=torch.tensor([sequence["prompt"]]),
        decoder_input_ids=torch.tensor([start + sequence["response"][:-1]]),
        output_hidden_states=True,
    )
    return out.logits[0], out.decoder_hidden_states[-1][0]


def token_values(model, sequences, temperature):
    """Log-probability and entropy of every response token, over all sequences."""
    logs, entropies = [], []
    for s in sequences:
        log_p = torch.log_softmax(rows(model, s)[0] / temperature, -1)
        logs.append(log_p.gather(1, torch.tensor(s["response"])[:, None])[:, 0])
        entropies.append(-(log_p.exp() * log_p).sum(-1))
    return torch.cat(logs), torch.cat(entropies)


def main():
    for index, name in enumerate(NAMES):
        torch.manual_seed(SEED + index)
        base = transformers.T5ForConditionalGeneration.from_pretrained(
            FIXTURES / f"soup-{name}" / "base", attn_implementation="eager", dtype=torch.float32
        ).eval()
        lora = peft.LoraConfig(
            task_type="SEQ_2_SEQ_LM", r=4, lora_alpha=8, lora_dropout=0.0, target_modules=TARGETS
        )
        model = peft.get_peft_model(base, lora)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    parameter.copy_(0.1 * torch.randn_like(parameter))
        model = model.double().eval()
        factors = {n.replace(".default", ""): p for n, p in model.named_parameters() if "lora_" in n}
        out = {n: p.detach().float().clone() for n, p in factors.items()}
        vocabulary, width = base.config.vocab_size, base.config.d_model
        draw = lambda count: torch.randint(3, vocabulary, (count,)).tolist()
        sequences = [{"prompt": draw(p), "response": draw(r)} for p, r in LENGTHS]
        sequences.append({"prompt": sequences[-1]["prompt"], "response": draw(4)})
        with torch.no_grad():
            for temperature in [1, 0.7]:
                log_p, entropy = token_values(model, sequences, temperature)
                out[f"log_probs.{temperature}"] = log_p.float()
                out[f"entropy.{temperature}"] = entropy.float()
            with model.disable_adapter():
                out["log_probs.reference"] = token_values(model, sequences, 1)[0].float()
        (-token_values(model, sequences, 0.7)[0].mean()).backward()
        out.update({f"grad.{n}": p.grad.float().clone() for n, p in factors.items()})

        head = {"weight": 0.3 * torch.randn(width, 1), "bias": 0.3 * torch.randn(1)}
        out.update({f"value_head.{n}": p.clone() for n, p in head.items()})
        head = {n: p.double().requires_grad_() for n, p in head.items()}
        hidden = torch.cat([rows(model, s)[1] for s in sequences])
        values = (hidden @ head["weight"] + head["bias"])[:, 0]
        ((values - 1) ** 2).mean().backward()
        out["values"] = values.detach().float()
        out.update({f"grad.value_head.{n}": p.grad.float().clone() for n, p in head.items()})

        folder = FIXTURES / "lora-training" / name
        folder.mkdir(parents=True, exist_ok=True)
        save_file(out, folder / "reference.safetensors")
        versions = {module.__name__: module.__version__ for module in (torch, transformers, peft)}
        settings = {"seed": SEED + index, **versions, "sequences": sequences}
        (folder / "reference.json").write_text(json.dumps(settings) + "\n")
        smallest = min((float(p.grad.abs().max()), n) for n, p in factors.items())
        print(name, len(factors), "factors; smallest gradient", smallest)


if __name__ == "__main__":
    main()
