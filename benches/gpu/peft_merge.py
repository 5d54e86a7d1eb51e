"""What PyTorch and PEFT take to the first token of a new preference: a 7B-shaped model with random
weights in bf16, three LoRA adapters of rank 64, exact combination (`cat`), merge, one token.

    python3 peft_merge.py --out peft.json [--layers 32]
"""

import argparse
import json
import time

import peft
import torch
import transformers

PROMPT = 128


def timed(f):
    torch.cuda.synchronize()
    begin = time.perf_counter()
    result = f()
    torch.cuda.synchronize()
    return time.perf_counter() - begin, result


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_attention_heads=32,
        num_key_value_heads=32,
        num_hidden_layers=args.layers,
        vocab_size=32000,
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = transformers.LlamaForCausalLM(config).eval()
        lora = peft.LoraConfig(r=64, lora_alpha=128, target_modules="all-linear", init_lora_weights=False)
        model = peft.get_peft_model(model, lora, adapter_name="a")
        for name in "bc":
            model.add_adapter(name, lora)
        tokens = torch.randint(0, 32000, (1, PROMPT))

    runs = []
    for index in range(args.repeat + 1):
        weights = [0.2 + 0.1 * index, 0.5, 0.3 - 0.1 * index]
        combine, _ = timed(
            lambda: model.add_weighted_adapter(["a", "b", "c"], weights, "mix", combination_type="cat")
        )
        merge, _ = timed(lambda: model.merge_adapter(["mix"]))
        with torch.inference_mode():
            generate, _ = timed(
                lambda: model.generate(input_ids=tokens, max_new_tokens=1, do_sample=False, pad_token_id=0)
            )
        model.unmerge_adapter()
        model.delete_adapter("mix")
        if index > 0:  # the first one warms up
            runs.append({"combine": combine, "merge": merge, "first_token": generate})

    # The tensors of three full checkpoints, averaged as torch would.
    sources = [torch.randn(64 << 20, device="cuda") for _ in range(3)]
    def average():
        out = sources[0] * 0.5
        out.add_(sources[1], alpha=0.3).add_(sources[2], alpha=0.2)
        return out
    average()
    seconds, _ = timed(average)
    report = {
        "device": torch.cuda.get_device_name(),
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, peft)},
        "layers": args.layers,
        "seconds": runs,
        "torch_average_bytes_per_s": 4 * (64 << 20) * 2 / seconds,
    }
    with open(args.out, "w") as file:
        json.dump(report, file, indent=2)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
