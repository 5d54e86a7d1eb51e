"""Reference values of LoRA training whose adapters are active on the answer only: log-probabilities and
gradients of PEFT's aLoRA in float64, on the model, factors and sequences of make_lora_training.py.

    OMP_NUM_THREADS=1 python tests/reference/make_lora_training_answer.py

Writes tests/fixtures/lora-training/answer.safetensors: `from` (the first row that the adapters act on,
of each sequence), `log_probs` at temperature 0.7 and `grad.*` of the mean negative log-probability.
Made with torch 2.13.0, transformers 5.24.0 and PEFT 0.21.2; nothing is drawn.
"""

import json
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

OUT = Path(__file__).resolve().parents[1] / "fixtures" / "lora-training"

torch.use_deterministic_algorithms(True)
config = transformers.LlamaConfig.from_pretrained(OUT)
config._attn_implementation = "eager"
base = transformers.LlamaForCausalLM(config)
missing = base.load_state_dict(load_file(OUT / "model.safetensors"), strict=False)
assert not missing.unexpected_keys and missing.missing_keys in ([], ["lm_head.weight"]), missing

targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
lora = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=targets,
                       task_type="CAUSAL_LM", alora_invocation_tokens=[1])
model = peft.get_peft_model(base, lora)
stored = load_file(OUT / "reference.safetensors")
with torch.no_grad():
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.copy_(stored[name.replace(".default", "")])
model = model.double()
factors = {n.replace(".default", ""): p for n, p in model.named_parameters() if "lora_" in n}

sequences = json.loads((OUT / "reference.json").read_text())["sequences"]
# The whole sequence, late in a long prompt, the last token, the middle.
start = [0, 61, 0, 5]
logs = []
for s, at in zip(sequences, start):
    ids = torch.tensor([s["prompt"] + s["response"]])
    logits = model(input_ids=ids, alora_offsets=[ids.shape[1] - at]).logits
    log_p = torch.log_softmax(logits[0, len(s["prompt"]) - 1 : -1] / 0.7, -1)
    logs.append(log_p.gather(1, torch.tensor(s["response"])[:, None])[:, 0])
logs = torch.cat(logs)
(-logs.mean()).backward()
out = {f"grad.{name}": p.grad.float().clone() for name, p in factors.items()}
out["log_probs"] = logs.detach().float()
out["from"] = torch.tensor(start)
save_file(out, OUT / "answer.safetensors")
print(logs.mean().item())
