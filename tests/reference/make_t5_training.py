"""Reference values of LoRA training on the tiny T5s: log-probabilities of responses, gradients of PEFT's
factors, and a value head on the decoder's last hidden states, computed by torch in float64.

    OMP_NUM_THREADS=1 python tests/reference/make_t5_training.py

For each NAME, reads tests/fixtures/soup-NAME/base and writes tests/fixtures/lora-training/NAME/:
reference.safetensors (factors `base_model.model.*`, gradients `grad.*`, values of each token, the value
head `value_head.*`) and reference.json (sequences, seed, versions). The decoder is given
`decoder_start_token_id` and the response but for its last token. The value loss is the mean of
(V - 1)² over all response tokens.
"""

import torch
import transformers

from lora_reference import FIXTURES, adapted, references, write

SEED = 20261130
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


def main():
    for index, name in enumerate(NAMES):
        torch.manual_seed(SEED + index)
        base = transformers.T5ForConditionalGeneration.from_pretrained(
            FIXTURES / f"soup-{name}" / "base", attn_implementation="eager", dtype=torch.float32
        ).eval()
        settings = {"task_type": "SEQ_2_SEQ_LM", "target_modules": TARGETS}
        model = adapted(base, settings).eval()
        vocabulary, width = base.config.vocab_size, base.config.d_model
        draw = lambda count: torch.randint(3, vocabulary, (count,)).tolist()
        sequences = [{"prompt": draw(p), "response": draw(r)} for p, r in LENGTHS]
        sequences.append({"prompt": sequences[-1]["prompt"], "response": draw(4)})
        out = references(model, lambda s: rows(model, s)[0], sequences)

        head = {"weight": 0.3 * torch.randn(width, 1), "bias": 0.3 * torch.randn(1)}
        out.update({f"value_head.{n}": p.clone() for n, p in head.items()})
        head = {n: p.double().requires_grad_() for n, p in head.items()}
        hidden = torch.cat([rows(model, s)[1] for s in sequences])
        values = (hidden @ head["weight"] + head["bias"])[:, 0]
        ((values - 1) ** 2).mean().backward()
        out["values"] = values.detach().float()
        out.update({f"grad.value_head.{n}": p.grad.float().clone() for n, p in head.items()})

        write(name, out, SEED + index, sequences)
        smallest = min((float(out[n].abs().max()), n) for n in out if n.startswith("grad.base_model"))
        print(name, len(out), "tensors; smallest gradient", smallest)


if __name__ == "__main__":
    main()
