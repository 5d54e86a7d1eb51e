"""The LoRA update of training/benches/update.rs with PEFT on torch CPU: prints one JSON line.

    OMP_NUM_THREADS=2 python benches/peers/lora_update_torch.py [float32|bfloat16]
"""

import json
import resource
import sys
import time

import peft
import torch
import transformers

dtype = getattr(torch, sys.argv[1] if len(sys.argv) > 1 else "float32")
torch.manual_seed(1)
config = transformers.LlamaConfig(
    vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
    num_attention_heads=9, num_key_value_heads=3, rope_theta=1e5, tie_word_embeddings=True,
    max_position_embeddings=8192,
)
model = transformers.LlamaForCausalLM(config).to(dtype)
lora = peft.LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
model = peft.get_peft_model(model, lora)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
ids = torch.randint(0, 49152, (8, 129))
forward, backward = [], []
for _ in range(5):
    start = time.perf_counter()
    logits = model(input_ids=ids[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
    forward.append(time.perf_counter() - start)
    start = time.perf_counter()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    optimizer.zero_grad()
    backward.append(time.perf_counter() - start)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({
    "what": f"the same with PEFT {peft.__version__}, torch {torch.__version__}, {dtype}",
    "forward_s": min(forward), "backward_s": min(backward),
    "tokens_per_s": 8 * 128 / (min(forward) + min(backward)), "peak_memory": f"{peak} kB",
}))
