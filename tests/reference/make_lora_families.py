"""Reference values of LoRA training on the tiny models of further families: log-probabilities and
gradients of PEFT's factors, computed by torch in float64.

    OMP_NUM_THREADS=1 python tests/reference/make_lora_families.py

For each NAME, reads tests/fixtures/models/NAME and writes tests/fixtures/lora-training/NAME/:
reference.safetensors (factors `base_model.model.*`, gradients `grad.*`, values of each token) and
reference.json (sequences, seed, versions).
"""

import sys

import torch
import transformers

from lora_reference import FIXTURES, adapted, references, write

SEED = 20261129
NAMES = ["smollm3", "smollm3-window", "olmo2", "granite", "gemma3", "phi3", "gemma", "gemma2", "olmo3"]
LENGTHS = [(5, 3), (70, 21), (1, 1), (12, 9)]  # one sequence is longer than an attention block
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]


def main():
    for index, name in enumerate(NAMES):
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        torch.manual_seed(SEED + index)
        base = transformers.AutoModelForCausalLM.from_pretrained(
            FIXTURES / "models" / name, attn_implementation="eager", dtype=torch.float32
        )
        targets = FUSED if base.config.model_type == "phi3" else TARGETS
        model = adapted(base, {"target_modules": targets})
        vocabulary = base.config.vocab_size
        sequences = [
            {
                "prompt": torch.randint(3, vocabulary, (p,)).tolist(),
                "response": torch.randint(3, vocabulary, (r,)).tolist(),
            }
            for p, r in LENGTHS
        ]
        logits = lambda s: model(
            input_ids=torch.tensor([s["prompt"] + s["response"]])
        ).logits[0, len(s["prompt"]) - 1 : -1]
        out = references(model, logits, sequences)
        write(name, out, SEED + index, sequences)
        print(name, len(out), "tensors")


if __name__ == "__main__":
    main()
