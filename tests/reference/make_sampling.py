"""Reference distributions for src/sampling.rs -> tests/fixtures/sampling.json

Temperature, top-k, top-p, min-p and the repetition penalty are transformers' own processors, in the
order that transformers applies them; frequency and presence penalties are OpenAI's formula
(logit - count * frequency - (count > 0) * presence, over the answer only).

Usage: python tests/reference/make_sampling.py
"""

import json
import pathlib

import torch
import transformers
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

SEED = 20261121

PARAMS = [
    {},
    {"temperature": 0.7},
    {"temperature": 1.6},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 5000},
    {"top_p": 0.9},
    {"top_p": 0.05},
    {"top_p": 0.999},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.8},
    {"top_k": 20, "top_p": 0.8, "min_p": 0.05, "temperature": 0.9},
    {"top_p": 0.95, "min_p": 0.02, "temperature": 1.3},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8, "temperature": 0.8},
    {"frequency_penalty": 0.6},
    {"presence_penalty": -0.9},
    {"frequency_penalty": 1.1, "presence_penalty": 0.4, "top_p": 0.9},
    {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": 0.2, "top_k": 12},
]


def distribution(logits, prompt, answer, p):
    ids = torch.tensor([prompt + answer])
    x = logits.clone().unsqueeze(0)
    if p.get("repetition_penalty", 1.0) != 1.0:
        x = RepetitionPenaltyLogitsProcessor(p["repetition_penalty"])(ids, x)
    for token in set(answer):
        count = answer.count(token)
        x[0, token] -= p.get("frequency_penalty", 0.0) * count + p.get("presence_penalty", 0.0)
    if p.get("temperature", 1.0) != 1.0:
        x = TemperatureLogitsWarper(p["temperature"])(ids, x)
    if "top_k" in p:
        x = TopKLogitsWarper(p["top_k"])(ids, x)
    if "top_p" in p:
        x = TopPLogitsWarper(p["top_p"])(ids, x)
    if "min_p" in p:
        x = MinPLogitsWarper(p["min_p"])(ids, x)
    return torch.softmax(x[0].double(), -1)


def main():
    generator = torch.Generator().manual_seed(SEED)
    rows = []
    for vocabulary, scale in [(37, 1.0), (300, 2.5), (300, 0.1)]:
        # Two decimals: no rounding on the way through JSON, and exact ties broken by a ramp.
        logits = (torch.randn(vocabulary, generator=generator) * scale * 100).round() / 100
        logits += torch.arange(vocabulary) / 65536.0
        prompt = torch.randint(0, vocabulary, (12,), generator=generator).tolist()
        answer = torch.randint(0, vocabulary, (9,), generator=generator).tolist()
        answer += answer[:4]
        log_softmax = torch.log_softmax(logits.double(), -1)
        top = torch.topk(log_softmax, 5)
        cases = []
        for params in PARAMS:
            p = distribution(logits, prompt, answer, params)
            kept = torch.nonzero(p).flatten().tolist()
            cases.append({"params": params, "ids": kept, "p": [round(p[i].item(), 7) for i in kept]})
        rows.append(
            {
                "logits": logits.tolist(),
                "prompt": prompt,
                "answer": answer,
                "logprobs": [round(v, 6) for v in log_softmax.tolist()],
                "top": top.indices.tolist(),
                "cases": cases,
            }
        )
    out = {
        "generator": "tests/reference/make_sampling.py",
        "seed": SEED,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "rows": rows,
    }
    path = pathlib.Path(__file__).parent.parent / "fixtures" / "sampling.json"
    path.write_text(json.dumps(out, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
