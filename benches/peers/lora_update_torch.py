"""The LoRA update of training/benches/update.rs with PEFT on torch CPU, and with TRL's RLOO loss.

    python lora_update_torch.py make BASE DIR                      what both sides start from
    python lora_update_torch.py run BASE DIR --shape packed|rloo [--loss peft|trl]
                                             [--dtype float32|bfloat16] [--repeats N]

`make` writes DIR/inputs.safetensors: PEFT's initial factors (rank 16 on q, k, v, o), 8 sequences of
128 tokens (`packed`), 2 prompts of 170 tokens with 8 responses of 30 each and their advantages
(`rloo`). `run` prints one JSON line. In bfloat16 the base is bfloat16 and the factors float32, as
PEFT keeps them. `trl` is `RLOOTrainer._compute_loss` without gradient checkpointing (its fused head
included); the rest of its trainer, which samples, is not called.
"""

import argparse
import json
import pathlib
import re
import tempfile
import time

import peft
import safetensors.torch
import torch
import transformers

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
PROMPTS, SAMPLES, PROMPT, RESPONSE = 2, 8, 170, 30


def policy(base, dtype):
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    lora = peft.LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS, task_type="CAUSAL_LM")
    return peft.get_peft_model(model, lora)


def make(base, directory):
    torch.manual_seed(1)
    model = policy(base, torch.float32)
    tensors = {
        name.replace(".default", ""): value.detach().contiguous()
        for name, value in model.named_parameters() if value.requires_grad
    }
    vocabulary = model.config.vocab_size
    tensors["packed"] = torch.randint(0, vocabulary, (8, 129))
    tensors["prompts"] = torch.randint(0, vocabulary, (PROMPTS, PROMPT))
    tensors["responses"] = torch.randint(0, vocabulary, (PROMPTS * SAMPLES, RESPONSE))
    tensors["advantages"] = torch.randn(PROMPTS * SAMPLES)
    safetensors.torch.save_file(tensors, directory / "inputs.safetensors")


def cross_entropy(model, inputs):
    ids = inputs["packed"]
    logits = model(input_ids=ids[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


def rloo(model, inputs):
    """−Σ advantage · log π(response) / responses, logits of the response tokens only."""
    responses = inputs["responses"]
    ids = torch.cat([inputs["prompts"].repeat_interleave(SAMPLES, 0), responses], 1)
    logits = model(input_ids=ids, logits_to_keep=RESPONSE + 1).logits[:, :-1]
    log_probs = torch.log_softmax(logits.float(), -1).gather(-1, responses[..., None])[..., 0]
    return -(inputs["advantages"] * log_probs.sum(1)).mean()


def trl_rloo(base, model):
    """TRL's loss; its gradient at the sampling policy (ratio 1) is that of `rloo`."""
    import datasets
    import trl

    arguments = trl.RLOOConfig(
        output_dir=tempfile.mkdtemp(), use_cpu=True, bf16=False, report_to=[], beta=0.0,
        per_device_train_batch_size=PROMPTS * SAMPLES, num_generations=SAMPLES,
        max_completion_length=RESPONSE, gradient_checkpointing=False,
    )
    trainer = trl.RLOOTrainer(
        model=model, reward_funcs=lambda completions, **_: [0.0] * len(completions), args=arguments,
        train_dataset=datasets.Dataset.from_list([{"prompt": "a"}] * SAMPLES),
        processing_class=transformers.AutoTokenizer.from_pretrained(base),
    )

    def loss(model, inputs):
        prompts, responses = inputs["prompts"].repeat_interleave(SAMPLES, 0), inputs["responses"]
        batch = {
            "prompt_ids": prompts, "prompt_mask": torch.ones_like(prompts),
            "completion_ids": responses, "completion_mask": torch.ones_like(responses),
            "advantages": inputs["advantages"], "old_logps": inputs["old"],
        }
        return trainer._compute_loss(model, batch)

    return loss, trl.__version__


def status(key):
    return int(re.search(rf"^{key}:\s+(\d+)", pathlib.Path("/proc/self/status").read_text(), re.M).group(1))


def run(base, directory, options):
    inputs = safetensors.torch.load_file(directory / "inputs.safetensors")
    model = policy(base, getattr(torch, options.dtype))
    model.load_state_dict(
        {re.sub(r"(lora_.)", r"\1.default", k): v for k, v in inputs.items() if "lora_" in k},
        strict=False,
    )
    versions = {m.__name__: m.__version__ for m in (torch, transformers, peft)}
    if options.loss == "trl":
        with torch.no_grad():
            ids = torch.cat([inputs["prompts"].repeat_interleave(SAMPLES, 0), inputs["responses"]], 1)
            logits = model(input_ids=ids, logits_to_keep=RESPONSE + 1).logits[:, :-1].float()
            chosen = torch.log_softmax(logits, -1).gather(-1, inputs["responses"][..., None])
            inputs["old"] = chosen[..., 0].sum(1)
            del logits
        loss_of, versions["trl"] = trl_rloo(base, model)
    else:
        loss_of = {"packed": cross_entropy, "rloo": rloo}[options.shape]
    model.train()
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    forward, backward, losses, norms = [], [], [], []
    for _ in range(options.repeats):
        start = time.perf_counter()
        loss = loss_of(model, inputs)
        losses.append(loss.item())
        forward.append(time.perf_counter() - start)
        start = time.perf_counter()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5).item())
        optimizer.step()
        optimizer.zero_grad()
        backward.append(time.perf_counter() - start)
    print(json.dumps({
        "forward_s": forward, "backward_s": backward, "losses": losses, "grad_norms": norms,
        "before_mib": before / 1024, "peak_mib": status("VmHWM") / 1024,
        "threads": torch.get_num_threads(), "versions": versions,
    }))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["make", "run"])
    parser.add_argument("base")
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--shape", choices=["packed", "rloo"], default="packed")
    parser.add_argument("--loss", choices=["peft", "trl"], default="peft")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if options.command == "make":
        make(options.base, options.directory)
    else:
        run(options.base, options.directory, options)


if __name__ == "__main__":
    main()
