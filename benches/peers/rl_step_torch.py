"""A step of training/benches/step.rs with PEFT on torch CPU: sampling, reference, RLOO update.

    python rl_step_torch.py BASE --prompts N --prompt TOKENS --response TOKENS --samples N
                            [--dtype float32|bfloat16] [--repeats N]

PEFT's LoRA (rank 8, alpha 16, all linear layers) acts on every token; the reference is the same model with
the adapter off. Prints one JSON line. In bfloat16 the base is bfloat16 and the factors float32, as PEFT
keeps them.
"""

import argparse
import json
import pathlib
import re
import time

import peft
import torch
import transformers

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def status(key):
    return int(re.search(rf"^{key}:\s+(\d+)", pathlib.Path("/proc/self/status").read_text(), re.M).group(1))


def log_probs(model, ids, response):
    logits = model(input_ids=ids, logits_to_keep=response + 1).logits[:, :-1]
    return torch.log_softmax(logits.float(), -1).gather(-1, ids[:, -response:, None])[..., 0]


def step(model, optimizer, prompts, options):
    times = [time.perf_counter()]
    model.eval()
    with torch.no_grad():
        ids = model.generate(
            input_ids=prompts, attention_mask=torch.ones_like(prompts), do_sample=True, temperature=1.0, top_k=0,
            num_return_sequences=options.samples, min_new_tokens=options.response,
            max_new_tokens=options.response, pad_token_id=0,
        )
        times.append(time.perf_counter())
        with model.disable_adapter():
            log_probs(model, ids, options.response)
        times.append(time.perf_counter())
    model.train()
    advantages = torch.rand(len(ids)) * 2 - 1
    (-(advantages * log_probs(model, ids, options.response).sum(1)).mean()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    optimizer.zero_grad()
    times.append(time.perf_counter())
    sampling, reference, update = (b - a for a, b in zip(times, times[1:]))
    return {"sampling_s": sampling, "reference_s": reference, "update_s": update}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base")
    for name in ("prompts", "prompt", "response", "samples"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(options.base, dtype=getattr(torch, options.dtype))
    lora = peft.LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, lora)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    first = []
    for _ in range(options.repeats):
        prompts = torch.randint(0, model.config.vocab_size, (options.prompts, options.prompt))
        first.append(step(model, optimizer, prompts, options))
    print(json.dumps({
        "first": first, "samples": options.samples, "before_mib": before / 1024, "peak_mib": status("VmHWM") / 1024,
        "threads": torch.get_num_threads(),
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, peft)},
    }))


if __name__ == "__main__":
    main()
