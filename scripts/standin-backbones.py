#!/usr/bin/env python3
"""Make stand-in backbones for the default soup: short weighted behaviour cloning, no RL.

Each objective has its own targets for the same abstracts: `faithful` the two abstract sentences
closest to the human summary, `brief` the paper's title, `plain` the human summaries with the
shortest words. Backbone i is fine-tuned on targets drawn with the weights of column i of the
circulant mixing matrix (beta 0.6), so that mu -> lambda works as for backbones trained with RL.

Usage: standin-backbones.py --data scitldr/train.jsonl --gguf SmolLM2-135M-Instruct.Q4_1.gguf --out backbones
Needs: torch, transformers, peft, gguf, safetensors (versions are printed).
"""

import argparse
import json
import pathlib
import random
import time

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

OBJECTIVES = ["faithful", "brief", "plain"]
BETA = 0.6
PROMPT = "Summarize this abstract in one sentence.\n\n{abstract}"
MAX_ABSTRACT_TOKENS = 150


def targets(row):
    """The text that each objective would like best, per objective; None where there is none."""
    scored = range(min(len(row["source"]), len(row["rouge_scores"])))
    best = sorted(sorted(scored, key=lambda i: -row["rouge_scores"][i])[:2])
    summary = row["target"][0]
    words = summary.split()
    plain = sum(map(len, words)) / len(words) < 5.6
    return {
        "faithful": " ".join(row["source"][i] for i in best),
        "brief": row["title"],
        "plain": summary if plain else None,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--gguf", required=True, type=pathlib.Path)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=17)
    args = parser.parse_args()
    print({m.__name__: m.__version__ for m in (torch, transformers, peft)}, flush=True)

    gguf = {"gguf_file": args.gguf.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.gguf.parent, **gguf)
    rows = [json.loads(line) for line in open(args.data, encoding="utf-8")]
    rows = [r for r in rows if len(tokenizer(" ".join(r["source"]))["input_ids"]) <= MAX_ABSTRACT_TOKENS]
    examples = {objective: [] for objective in OBJECTIVES}
    for row in rows:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": PROMPT.format(abstract=" ".join(row["source"]))}],
            add_generation_prompt=True,
            tokenize=False,
        )
        prompt = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        for objective, text in targets(row).items():
            if text:
                answer = tokenizer(text + "<|im_end|>", add_special_tokens=False)["input_ids"]
                examples[objective].append((prompt, answer))
    print({k: len(v) for k, v in examples.items()}, flush=True)

    n = len(OBJECTIVES)
    for i, name in enumerate(OBJECTIVES):
        out = args.out / name
        if (out / "adapter_model.safetensors").exists():
            print(name, "is there already", flush=True)
            continue
        torch.manual_seed(args.seed)
        rng = random.Random(args.seed)
        model = transformers.AutoModelForCausalLM.from_pretrained(args.gguf.parent, dtype=torch.float32, **gguf)
        model = peft.get_peft_model(
            model,
            peft.LoraConfig(
                r=args.rank,
                lora_alpha=2 * args.rank,
                target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
                task_type="CAUSAL_LM",
            ),
        )
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=0.0)
        column = [BETA if j == i else (1 - BETA) / (n - 1) for j in range(n)]
        start = time.time()
        for step in range(args.steps):
            batch = [rng.choice(examples[rng.choices(OBJECTIVES, column)[0]]) for _ in range(args.batch)]
            width = max(len(p) + len(a) for p, a in batch)
            ids = torch.full((len(batch), width), tokenizer.convert_tokens_to_ids("<|im_end|>"))
            labels = torch.full((len(batch), width), -100)
            mask = torch.zeros((len(batch), width), dtype=torch.long)
            for k, (p, a) in enumerate(batch):
                ids[k, : len(p) + len(a)] = torch.tensor(p + a)
                labels[k, len(p) : len(p) + len(a)] = torch.tensor(a)
                mask[k, : len(p) + len(a)] = 1
            for group in optimizer.param_groups:
                group["lr"] = args.lr * (1 - step / args.steps)
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 0.5)
            optimizer.step()
            print(f"{name} step {step + 1}/{args.steps} loss {loss.item():.4f} {time.time() - start:.0f} s", flush=True)
        partial = args.out / f".{name}.partial"
        model.peft_config["default"].base_model_name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"
        model.save_pretrained(partial)
        weights = partial / "adapter_model.safetensors"
        tensors = {key: value.to(torch.bfloat16).contiguous() for key, value in load_file(weights).items()}
        save_file(tensors, weights, metadata={"format": "pt"})
        for extra in partial.glob("README.md"):
            extra.unlink()
        partial.rename(out)


if __name__ == "__main__":
    main()
