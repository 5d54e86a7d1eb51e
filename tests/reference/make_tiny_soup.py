"""Makes tests/fixtures/soup-*: tiny random soups as PEFT and transformers write them, and what
PEFT and torch make of them.

    python tests/reference/make_tiny_soup.py            # writes everything anew
    python tests/reference/make_tiny_soup.py --check DIR CASE
        # loads the adapter that `ladle merge --adapter` wrote to DIR with PEFT and compares its
        # logits with the stored ones of CASE of soup-tiny

Three soups: soup-tiny (adapters on a tied base), soup-tiny-full (full checkpoints, one sharded, one
bf16, on the same base) and soup-tiny-mixed (an untied base with a supervised adapter; one adapter
with modules_to_save, one full checkpoint, one rsLoRA adapter). Beside each stands
NAME-reference.{json,safetensors}: solved coefficients, logits of the base, of every backbone and of
every merge, and some merged tensors. Merges of adapters are PEFT's
add_weighted_adapter(combination_type="cat"), those of full checkpoints are torch sums in f64.
"""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import peft
import safetensors
import tokenizers
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SEED = 20240917
FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
TOKENS = [301, 17, 288, 402, 77, 5, 499, 260, 33, 311, 90, 410, 150, 2, 64, 350]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = """The soup is served from a ladle, and every guest asks for another taste.
A preference is a point on the simplex: how much of each objective the reader wants.
Merging the weights of several models gives one model that answers in between them.
helpful, harmless and brief answers pull in different directions; the matrix says how.
We measure the front, draw it, and look at the points that nobody dominates.
def merge(thetas, coefficients): return sum(c * t for c, t in zip(coefficients, thetas))
What is 12 + 30? It is 42. What about 1,024 bytes? That is one kibibyte, or 2**10.
Les modèles fusionnés répondent; die Gewichte werden gemittelt; los pesos se suman. 😀 日本語
user: Please summarise the paper in one sentence. assistant: The paper merges models at test time.
The quick brown fox jumps over the lazy dog while the slow green turtle looks at the sea.
Numbers, names and newlines:\n\n\tindented text, then  two spaces and a tab.\tEnd of the line.
"""


def reset(path):
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_tokenizer(path):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=SPECIALS,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    assert tokenizer.get_vocab_size() == 512, tokenizer.get_vocab_size()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        model_max_length=256,
    )
    fast.save_pretrained(path)
    config = json.loads((path / "tokenizer_config.json").read_text())
    config["chat_template"] = CHATML
    (path / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def make_base(path, tied, seed):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("norm.weight"):
                tensor.copy_(1 + 0.2 * torch.randn_like(tensor))
            else:
                tensor.normal_(0, 0.2)
    model.save_pretrained(path)
    make_tokenizer(path)
    return LlamaForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def make_adapter(base_dir, path, seed, sigma=0.2, **settings):
    """A random PEFT adapter, written by PEFT."""
    base = LlamaForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
    torch.manual_seed(seed)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **settings))
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_" in name:
                tensor.normal_(0, sigma)
            elif "modules_to_save" in name:
                tensor.add_(0.2 * torch.randn_like(tensor))
    model.save_pretrained(path)
    (path / "README.md").unlink(missing_ok=True)
    config = json.loads((path / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "base"
    for key in ("target_modules", "modules_to_save"):
        if isinstance(config.get(key), list):
            config[key].sort()
    (path / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def make_full(base, path, seed, dtype=torch.float32, shard="5GB"):
    """A full checkpoint: the base, moved."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.1 * torch.randn_like(tensor))
    model.to(dtype).save_pretrained(path, max_shard_size=shard)


def toml_table(table, root, pattern):
    lines = [f'"{p.relative_to(root).as_posix()}" = "{sha256(p)}"' for p in sorted(root.glob(pattern))]
    return f"[{table}]\n" + "\n".join(lines) + "\n"


def write_manifest(root, name, base_dir, kinds, mixing, sft=False, extra=""):
    base = os.path.relpath(base_dir, root)
    text = f'format = 1\nname = "{name}"\ndefault = "balanced"\n\n[base]\npath = "{base}"\n\n'
    text += toml_table("base.sha256", base_dir, "*.safetensors") + "\n"
    if sft:
        text += '[sft]\npath = "sft"\n\n'
    text += f"[mixing]\n{mixing}\n\n[extrapolation]\nalpha = 0.0\nbounds = [0.0, 2.0]\n\n"
    text += "[presets]\nbalanced = { helpful = 1, harmless = 1, brief = 1 }\n"
    text += "terse = { brief = 0.8, helpful = 0.2 }\n\n"
    for objective, description in [
        ("helpful", "Answers what was asked."),
        ("harmless", "Declines what would hurt."),
        ("brief", "Says it in few words."),
    ]:
        text += f'[[objectives]]\nname = "{objective}"\ndescription = "{description}"\nrange = [0.0, 1.0]\n\n'
    for objective, kind in kinds.items():
        text += f'[[backbones]]\nname = "{objective}"\npath = "backbones/{objective}"\nkind = "{kind}"\n\n'
    text += toml_table("sha256", root, "**/*.safetensors") if base_dir.parent != root else (
        "[sha256]\n" + "\n".join(
            f'"{p.relative_to(root).as_posix()}" = "{sha256(p)}"'
            for p in sorted(root.glob("**/*.safetensors")) if base_dir not in p.parents
        ) + "\n"
    )
    (root / "soup.toml").write_text(text + extra)


def solve(matrix, preference, alpha):
    """λ and c of docs/algorithms.md §1; alpha is one number per objective."""
    mu = np.array(preference, dtype=np.float64)
    mu /= mu.sum()
    k = 1 + np.array(alpha, dtype=np.float64)
    inverse = np.linalg.inv(np.array(matrix, dtype=np.float64))
    return mu, inverse @ mu, inverse @ (mu * k), float(mu @ (1 - k))


def circulant(n, beta):
    off = (1 - beta) / (n - 1)
    return [[beta if i == j else off for j in range(n)] for i in range(n)]


@torch.no_grad()
def logits(model):
    return model(torch.tensor([TOKENS])).logits[0].float().contiguous().clone()


def state(model):
    return {k: v.detach().double().clone() for k, v in model.state_dict().items()}


def with_state(base_dir, tensors):
    model = LlamaForCausalLM.from_pretrained(base_dir, dtype=torch.float32).eval()
    missing = model.load_state_dict({k: v.float() for k, v in tensors.items()}, strict=False)
    assert not missing.unexpected_keys, missing
    return model


CASES = [
    {"preference": [0.2, 0.3, 0.5], "alpha": [0, 0, 0]},
    {"preference": [1, 0, 0], "alpha": [0, 0, 0]},
    {"preference": [0.6, 0.1, 0.3], "alpha": [0.5, 0.5, 0.5]},
    {"preference": [0, 0.25, 0.75], "alpha": [0.1, 0.7, 1.5]},
]
# Tensors whose merged values are stored, beside all logits.
KEPT = ["model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.v_proj.weight",
        "model.layers.1.mlp.down_proj.weight", "model.layers.0.input_layernorm.weight"]


def write_reference(name, matrix, merge, singles):
    cases, stored = [], {f"logits.{key}": logits(model) for key, model in singles.items()}
    for i, case in enumerate(CASES):
        mu, lam, c, sft = solve(matrix, **case)
        model = merge(c, sft)
        stored[f"logits.case{i}"] = logits(model)
        tensors = model.state_dict()
        for tensor in KEPT:
            stored[f"case{i}.{tensor}"] = tensors[tensor].float().contiguous().clone()
        cases.append({"preference": mu.tolist(), "alpha": case["alpha"], "lambda": lam.tolist(),
                      "coefficients": c.tolist(), "sft": sft})
    for i in range(len(cases)):
        spread = (stored[f"logits.case{i}"] - stored["logits.base"]).abs().max()
        assert spread > 0.5, f"{name}: case {i} is too close to the base: {spread}"
    save_file(stored, FIXTURES / f"{name}-reference.safetensors")
    document = {
        "generator": "tests/reference/make_tiny_soup.py", "seed": SEED,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__,
                     "peft": peft.__version__, "safetensors": safetensors.__version__,
                     "tokenizers": tokenizers.__version__},
        "tokens": TOKENS, "matrix": matrix, "cases": cases, "tensors": KEPT,
    }
    (FIXTURES / f"{name}-reference.json").write_text(json.dumps(document, indent=1) + "\n")


def merged_adapter(base_dir, root, names, weights):
    """base + Σ weightᵢ · adapterᵢ as PEFT's exact `cat` combines them."""
    base = LlamaForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, root / "backbones" / names[0], adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(root / "backbones" / name, adapter_name=name)
    # PEFT sums the adapters' `r` and unites their lists of targets: spell both out first.
    for name in names:
        layers = {k: m for k, m in model.base_model.model.named_modules()
                  if isinstance(m, LoraLayer) and name in m.lora_A}
        model.peft_config[name].r = max(layer.r[name] for layer in layers.values())
        model.peft_config[name].target_modules = set(layers)
    model.add_weighted_adapter(names, list(weights), "merged", combination_type="cat")
    model.set_adapter("merged")
    return model.merge_and_unload().eval()


def backbone(base_dir, path):
    base = LlamaForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
    return PeftModel.from_pretrained(base, path).merge_and_unload().eval()


NAMES = ["helpful", "harmless", "brief"]


def tiny():
    root = reset(FIXTURES / "soup-tiny")
    base = make_base(root / "base", tied=True, seed=SEED)
    make_adapter(root / "base", root / "backbones/helpful", SEED + 1, r=4, lora_alpha=8,
                 target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    make_adapter(root / "base", root / "backbones/harmless", SEED + 2, r=8, lora_alpha=4, use_rslora=True,
                 target_modules="all-linear")
    make_adapter(root / "base", root / "backbones/brief", SEED + 3, r=2, lora_alpha=4,
                 target_modules=r".*\.(v_proj|gate_proj|down_proj)",
                 rank_pattern={"down_proj": 6, r"layers.1.*v_proj": 3}, alpha_pattern={"v_proj": 3})
    write_manifest(root, "soup-tiny", root / "base", dict.fromkeys(NAMES, "adapter"), "beta = 0.7")
    singles = {name: backbone(root / "base", root / "backbones" / name) for name in NAMES}
    write_reference("soup-tiny", circulant(3, 0.7),
                    lambda c, sft: merged_adapter(root / "base", root, NAMES, c), {"base": base, **singles})


def linear(base_dir, states, weights):
    """Σ weight · state in f64, the formula of mergekit's `linear` without normalisation."""
    keys = states[0].keys()
    return with_state(base_dir, {k: sum(w * s[k] for w, s in zip(weights, states)) for k in keys})


def full():
    base_dir = FIXTURES / "soup-tiny/base"
    root = reset(FIXTURES / "soup-tiny-full")
    make_full(base_dir, root / "backbones/helpful", SEED + 11)
    make_full(base_dir, root / "backbones/harmless", SEED + 12, shard="200KB")
    make_full(base_dir, root / "backbones/brief", SEED + 13, dtype=torch.bfloat16)
    matrix = [[0.6, 0.2, 0.1], [0.3, 0.7, 0.1], [0.1, 0.1, 0.8]]
    write_manifest(root, "soup-tiny-full", base_dir, dict.fromkeys(NAMES, "full"), f"matrix = {matrix}")
    models = {"base": base_dir, **{name: root / "backbones" / name for name in NAMES}}
    models = {k: LlamaForCausalLM.from_pretrained(v, dtype=torch.float32).eval() for k, v in models.items()}
    states = [state(models[name]) for name in [*NAMES, "base"]]
    write_reference("soup-tiny-full", matrix, lambda c, sft: linear(base_dir, states, [*c, sft]), models)


def mixed():
    root = reset(FIXTURES / "soup-tiny-mixed")
    base_dir = root / "base"
    base = make_base(base_dir, tied=False, seed=SEED + 20)
    make_adapter(base_dir, root / "sft", SEED + 21, r=4, lora_alpha=4, target_modules=["q_proj", "down_proj"])
    # θ_sft is base + that adapter; what PEFT saves of modules replaces θ_sft's.
    sft = backbone(base_dir, root / "sft")
    make_adapter(base_dir, root / "backbones/helpful", SEED + 22, r=3, lora_alpha=6,
                 target_modules=["q_proj", "v_proj"], modules_to_save=["norm", "lm_head"])
    make_full(base_dir, root / "backbones/harmless", SEED + 23, shard="300KB")
    make_adapter(base_dir, root / "backbones/brief", SEED + 24, r=5, lora_alpha=5, use_rslora=True,
                 target_modules=["q_proj", "up_proj", "down_proj"], layers_to_transform=[1])
    kinds = {"helpful": "adapter", "harmless": "full", "brief": "adapter"}
    matrix = [[0.8, 0.1, 0.15], [0.1, 0.8, 0.15], [0.1, 0.1, 0.7]]
    mixing = f"beta = 0.7\nrealised = {matrix}\nmapping = \"realised\""
    write_manifest(root, "soup-tiny-mixed", base_dir, kinds, mixing, sft=True)

    def on_sft(name):
        tuned, plain, start = state(backbone(base_dir, root / "backbones" / name)), state(base), state(sft)
        saved = [k for k in plain if name == "helpful" and (k.endswith("norm.weight") or k == "lm_head.weight")]
        moved = {k: start[k] + tuned[k] - plain[k] for k in plain}
        return with_state(base_dir, {**moved, **{k: tuned[k] for k in saved}})

    harmless = LlamaForCausalLM.from_pretrained(root / "backbones/harmless", dtype=torch.float32).eval()
    models = {"base": base, "sft": sft, "helpful": on_sft("helpful"), "harmless": harmless, "brief": on_sft("brief")}
    states = [state(models[name]) for name in [*NAMES, "sft"]]
    write_reference("soup-tiny-mixed", matrix, lambda c, w: linear(base_dir, states, [*c, w]), models)


def check(directory, case):
    base_dir = FIXTURES / "soup-tiny/base"
    got = logits(backbone(base_dir, Path(directory)))
    with safetensors.safe_open(FIXTURES / "soup-tiny-reference.safetensors", "pt") as stored:
        want = stored.get_tensor(f"logits.case{case}")
    worst = (got - want).abs().max().item()
    print(json.dumps({"case": int(case), "max_abs_difference": worst}))
    sys.exit(worst > 1e-4)


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    if sys.argv[1:2] == ["--check"]:
        check(*sys.argv[2:4])
    tiny()
    full()
    mixed()
