"""Reference values of LoRA training: log-probabilities, gradients and AdamW steps of a tiny Llama
with a PEFT adapter, computed by torch in float64.

    OMP_NUM_THREADS=1 python tests/reference/make_lora_training.py

Writes tests/fixtures/lora-training/: config.json, model.safetensors (the frozen base, float32),
reference.safetensors (factors `base_model.model.*`, their gradients `grad.*`, their values after
three AdamW steps `after.*`, and per-token values) and reference.json (sequences, settings, versions).
"""

import json
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import save_file

SEED = 20261121
OUT = Path(__file__).resolve().parents[1] / "fixtures" / "lora-training"
LENGTHS = [(5, 3), (70, 21), (1, 1), (12, 9)]  # one sequence is longer than an attention block
STEPS, PEAK = 3, 2e-2

torch.manual_seed(SEED)
torch.use_deterministic_algorithms(True)

config = transformers.LlamaConfig(
    vocab_size=160,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=256,
    rope_theta=10000.0,
    tie_word_embeddings=True,
    attention_bias=False,
    bos_token_id=1,
    eos_token_id=2,
)
config._attn_implementation = "eager"
base = transformers.LlamaForCausalLM(config)
with torch.no_grad():
    for name, p in base.named_parameters():
        noise = torch.randn_like(p)
        p.copy_(1 + 0.1 * noise if name.endswith("norm.weight") else 0.15 * noise)
OUT.mkdir(parents=True, exist_ok=True)
config.architectures = ["LlamaForCausalLM"]
config.save_pretrained(OUT)
frozen = {n: p.detach().clone() for n, p in base.named_parameters()}
save_file(frozen, OUT / "model.safetensors", metadata={"format": "pt"})

targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
lora = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=targets)
model = peft.get_peft_model(base, lora)
factors = {}
with torch.no_grad():
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.copy_(0.1 * torch.randn_like(p))
            factors[name.replace(".default", "")] = p
model = model.double()
factors = {n.replace(".default", ""): p for n, p in model.named_parameters() if "lora_" in n}
out = {n: p.detach().float().clone() for n, p in factors.items()}

sequences = [
    {
        "prompt": torch.randint(3, config.vocab_size, (p,)).tolist(),
        "response": torch.randint(3, config.vocab_size, (r,)).tolist(),
    }
    for p, r in LENGTHS
]


def token_values(temperature):
    """Log-probability and entropy of every response token, over all sequences."""
    logs, entropies = [], []
    for s in sequences:
        ids = torch.tensor([s["prompt"] + s["response"]])
        logits = model(input_ids=ids).logits[0, len(s["prompt"]) - 1 : -1] / temperature
        log_p = torch.log_softmax(logits, -1)
        logs.append(log_p.gather(1, torch.tensor(s["response"])[:, None])[:, 0])
        entropies.append(-(log_p.exp() * log_p).sum(-1))
    return torch.cat(logs), torch.cat(entropies)


with torch.no_grad():
    for name, temperature in [("1", 1.0), ("0.7", 0.7)]:
        log_p, entropy = token_values(temperature)
        out[f"log_probs.{name}"], out[f"entropy.{name}"] = log_p.float(), entropy.float()
    with model.disable_adapter():
        out["log_probs.reference"] = token_values(1.0)[0].float()

loss = -token_values(0.7)[0].mean()
loss.backward()
for name, p in factors.items():
    out[f"grad.{name}"] = p.grad.float().clone()

optimizer = torch.optim.AdamW(factors.values(), lr=PEAK, weight_decay=0.01)
norms, losses = [], []
for step in range(STEPS):
    for group in optimizer.param_groups:
        group["lr"] = PEAK * (1 - step / STEPS)
    optimizer.zero_grad()
    loss = -token_values(1.0)[0].mean()
    loss.backward()
    losses.append(loss.item())
    norms.append(torch.nn.utils.clip_grad_norm_(factors.values(), 0.5).item())
    optimizer.step()
for name, p in factors.items():
    out[f"after.{name}"] = p.detach().float().clone()

save_file(out, OUT / "reference.safetensors")
(OUT / "reference.json").write_text(
    json.dumps(
        {
            "seed": SEED,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
            "rank": 4,
            "alpha": 8,
            "steps": STEPS,
            "peak": PEAK,
            "weight_decay": 0.01,
            "losses": losses,
            "norms": norms,
            "sequences": sequences,
        },
        indent=1,
    )
)
(OUT / "generation_config.json").unlink(missing_ok=True)
print(losses, norms)
