"""Logits of the tiny Phi-4-mini beyond its original context, where transformers rotates the whole
sequence with the long factors.

    python tests/reference/make_long_context.py

Reads tests/fixtures/models/phi4-mini and writes long.safetensors there: `tokens` [56] and `logits`
[8, vocabulary], those at the last eight tokens.
"""

import importlib.metadata
import pathlib

import torch
import transformers
from safetensors.torch import save_file

SEED = 20261130
FOLDER = pathlib.Path(__file__).resolve().parents[1] / "fixtures/models/phi4-mini"


def main() -> None:
    torch.manual_seed(SEED)
    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, attn_implementation="eager", dtype=torch.float32)
    tokens = torch.randint(3, model.config.vocab_size, (56,))
    assert len(tokens) > model.config.original_max_position_embeddings
    with torch.no_grad():
        logits = model(input_ids=tokens[None]).logits[0, -8:]
        short = model(input_ids=tokens[None, :40]).logits[0, -1]
        first = model(input_ids=tokens[None]).logits[0, 39]
    assert (short - first).abs().max() > 1e-3, "both sets of factors give the same"
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    notes = {"made by": pathlib.Path(__file__).name, "seed": str(SEED)} | versions
    save_file({"tokens": tokens, "logits": logits.contiguous()}, FOLDER / "long.safetensors", metadata=notes)


if __name__ == "__main__":
    main()
