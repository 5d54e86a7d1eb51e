"""Makes tests/fixtures/embeddings.json: what transformers and PEFT give for the embeddings of tiny
soups, final hidden states of length 1.

    python tests/reference/make_embeddings.py

Merged models are those of make_tiny_soup.py. θ_sft of soup-tiny is its base, that of
soup-tiny-mixed its base with the supervised adapter.
"""

import json

import peft
import torch
import transformers
from make_tiny_soup import CASES, FIXTURES, NAMES, TOKENS, backbone, circulant, merged_adapter, solve
from transformers import LlamaForCausalLM


@torch.no_grad()
def embeddings(model):
    states = model.model(torch.tensor([TOKENS])).last_hidden_state[0]
    pooled = {"last": states[-1], "mean": states.mean(0)}
    return {name: (state / state.norm()).tolist() for name, state in pooled.items()}


def main():
    root, mixed = FIXTURES / "soup-tiny", FIXTURES / "soup-tiny-mixed"
    cases = []
    for case in CASES:
        _, _, c, _ = solve(circulant(3, 0.7), **case)
        asked = {"preference": case["preference"], "alpha": case["alpha"]}
        cases.append({"soup": "soup-tiny", "asked": asked, **embeddings(merged_adapter(root / "base", root, NAMES, c))})
    base = LlamaForCausalLM.from_pretrained(root / "base", dtype=torch.float32).eval()
    for soup, model in [("soup-tiny", base), ("soup-tiny-mixed", backbone(mixed / "base", mixed / "sft"))]:
        cases.append({"soup": soup, "asked": {"weights": "sft"}, **embeddings(model)})
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    document = {"generator": "tests/reference/make_embeddings.py", "versions": versions, "tokens": TOKENS, "cases": cases}
    (FIXTURES / "embeddings.json").write_text(json.dumps(document) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    main()
