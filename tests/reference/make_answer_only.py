"""Makes tests/fixtures/soup-tiny-answer, a soup of activated LoRA as PEFT writes it, and
tests/fixtures/answer-only.{json,safetensors}: logits of soups whose backbones are active on the answer
only.

    python tests/reference/make_answer_only.py            # writes everything anew
    python tests/reference/make_answer_only.py --check DIR CASE
        # loads the adapter that `ladle merge --adapter` wrote to DIR for the coefficients of CASE of
        # soup-tiny-answer with PEFT and compares its logits with the stored ones

Two references that must agree. *Dense*: two whole models, theta_sft and the merged one, run side by
side; every linear layer, norm and embedding gives each row the output of the row's own model, so each
row is multiplied by its own matrix and all rows attend to all earlier ones. *PEFT*: the merged adapter
(factors stacked, coefficients in A) loaded as aLoRA over the base, for soups of adapters without an SFT
adapter. Soups: soup-tiny-answer (adapters that name invocation tokens), and soup-tiny-full and
soup-tiny-mixed (full checkpoints; an SFT adapter, a full checkpoint and adapters, one with
modules_to_save), whose backbones are made active on the answer by `activation = "answer"`.

The prompts end in rows that are not the point of activation's; logits are stored of the rows around
it, of the first and of the last.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

from make_tiny_soup import (
    FIXTURES, NAMES, backbone, circulant, linear, make_adapter, solve, state, with_state,
    write_manifest,
)

import peft
import safetensors
import tokenizers
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

SEED = 20261129
ROOT = FIXTURES / "soup-tiny-answer"
HEADER = "<|im_start|>assistant\n"
CASES = [
    {"preference": [0.2, 0.3, 0.5], "alpha": [0, 0, 0]},
    {"preference": [0.6, 0.1, 0.3], "alpha": [0.5, 0.5, 0.5]},
    {"preference": [0, 0.25, 0.75], "alpha": [0.1, 0.7, 1.5]},
]
LENGTH = 45


def header(base_dir):
    return AutoTokenizer.from_pretrained(base_dir)(HEADER, add_special_tokens=False).input_ids


def prompt(case, tokens):
    """Random tokens with the header twice: the last occurrence counts. Returns the point as well."""
    generator = torch.Generator().manual_seed(SEED + case)
    ids = torch.randint(3, 512, (LENGTH,), generator=generator).tolist()
    first, last = 4 + case, (33, 37, 16)[case]
    for at in (first, last):
        ids[at : at + len(tokens)] = tokens
    return ids, last


@torch.no_grad()
def rowwise(sft, merged, ids, at):
    """Logits of all rows, those before `at` computed with `sft`, the others with `merged`."""
    mask = (torch.arange(len(ids)) < at).view(1, -1, 1)
    others = dict(merged.named_modules())
    kinds = (torch.nn.Linear, torch.nn.Embedding, LlamaRMSNorm)
    handles = []
    for name, module in sft.named_modules():
        if isinstance(module, kinds):
            def choose(_, inputs, output, other=others[name]):
                return torch.where(mask, output, other(inputs[0]))
            handles.append(module.register_forward_hook(choose))
    out = sft(torch.tensor([ids])).logits[0].float().clone()
    for handle in handles:
        handle.remove()
    return out


def stacked(root, weights, path, base_dir, tokens):
    """Sum of weight * adapter as one aLoRA adapter, written in PEFT's form: factors stacked."""
    downs, ups = {}, {}
    for name, weight in zip(NAMES, weights):
        directory = root / "backbones" / name
        model = PeftModel.from_pretrained(
            LlamaForCausalLM.from_pretrained(base_dir, dtype=torch.float32), directory
        )
        for key, layer in model.named_modules():
            if hasattr(layer, "lora_A") and "default" in layer.lora_A:
                a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
                downs.setdefault(key, []).append(weight * layer.scaling["default"] * a.detach())
                ups.setdefault(key, []).append(b.detach())
    rank = max(sum(len(a) for a in part) for part in downs.values())
    tensors = {}
    for key in downs:
        a, b = torch.cat(downs[key]), torch.cat(ups[key], 1)
        fill = rank - len(a)
        tensors[f"{key}.lora_A.weight"] = torch.nn.functional.pad(a, (0, 0, 0, fill)).contiguous()
        tensors[f"{key}.lora_B.weight"] = torch.nn.functional.pad(b, (0, fill)).contiguous()
    path.mkdir()
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = sorted({key.removeprefix("base_model.model.") for key in downs})
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank,
                "target_modules": targets, "alora_invocation_tokens": tokens}
    (path / "adapter_config.json").write_text(json.dumps(settings))



@torch.no_grad()
def alora(base_dir, path, ids):
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base_dir, dtype=torch.float32), path)
    return model.eval()(input_ids=torch.tensor([ids])).logits[0].float()


def make_soup(tokens):
    shutil.rmtree(ROOT, ignore_errors=True)
    base_dir = FIXTURES / "soup-tiny/base"
    shared = {"alora_invocation_tokens": tokens}
    make_adapter(base_dir, ROOT / "backbones/helpful", SEED + 1, r=4, lora_alpha=8,
                 target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], **shared)
    make_adapter(base_dir, ROOT / "backbones/harmless", SEED + 2, r=2, lora_alpha=2, use_rslora=True,
                 target_modules="all-linear", **shared)
    make_adapter(base_dir, ROOT / "backbones/brief", SEED + 3, r=2, lora_alpha=4,
                 target_modules=["v_proj", "gate_proj", "down_proj"], **shared)
    write_manifest(ROOT, "soup-tiny-answer", base_dir, dict.fromkeys(NAMES, "adapter"), "beta = 0.7")
    manifest = ROOT / "soup.toml"
    manifest.write_text(manifest.read_text().replace("\n\n[base]", '\nactivation = "answer"\n\n[base]', 1))
    return base_dir


def whole(base_dir, path, kind, sft):
    """One backbone in full; adapters are over theta_sft."""
    if kind == "full":
        return LlamaForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    model = with_state(base_dir, state(sft))
    # Merging an aLoRA adapter is refused by PEFT; without its tokens it is plain LoRA.
    with tempfile.TemporaryDirectory() as plain:
        plain = Path(plain) / "adapter"
        shutil.copytree(path, plain)
        config = json.loads((plain / "adapter_config.json").read_text())
        config["alora_invocation_tokens"] = None
        (plain / "adapter_config.json").write_text(json.dumps(config))
        return PeftModel.from_pretrained(model, plain).merge_and_unload().eval()


SOUPS = {
    "soup-tiny-answer": dict(base="soup-tiny/base", matrix=circulant(3, 0.7), kinds=["adapter"] * 3),
    "soup-tiny-full": dict(base="soup-tiny/base", kinds=["full"] * 3,
                           matrix=[[0.6, 0.2, 0.1], [0.3, 0.7, 0.1], [0.1, 0.1, 0.8]]),
    "soup-tiny-mixed": dict(base="soup-tiny-mixed/base",
                            matrix=[[0.8, 0.1, 0.15], [0.1, 0.8, 0.15], [0.1, 0.1, 0.7]],
                            kinds=["adapter", "full", "adapter"]),
}


def rows_kept(at):
    return sorted({0, at - 1, at, at + 1, LENGTH - 1})


def main():
    tokens = header(FIXTURES / "soup-tiny/base")
    make_soup(tokens)
    stored, document = {}, {}
    for name, soup in SOUPS.items():
        base_dir, root = FIXTURES / soup["base"], FIXTURES / name
        sft = (backbone(base_dir, root / "sft") if (root / "sft").exists()
               else LlamaForCausalLM.from_pretrained(base_dir, dtype=torch.float32).eval())
        models = [whole(base_dir, root / "backbones" / n, kind, sft)
                  for n, kind in zip(NAMES, soup["kinds"])]
        models = [*models, sft]
        states = [state(model) for model in models]
        singles = [[float(i == j) for j in range(4)] for i in range(4)]
        cases = []
        for case in range(len(CASES)):
            mu, _, c, c_sft = solve(soup["matrix"], **CASES[case])
            ids, at = prompt(case, tokens)
            merged = linear(base_dir, states, [*c, c_sft])
            out = rowwise(with_state(base_dir, states[3]), merged, ids, at)
            plain = logits_of(with_state(base_dir, states[3]), ids)
            assert (out[:at] - plain[:at]).abs().max() < 1e-4, "rows before the point are theta_sft's"
            assert (out[at:] - plain[at:]).abs().max() > 0.1, "rows after it are not"
            full = logits_of(merged, ids)
            assert (out[at:] - full[at:]).abs().max() > 0.1, "they attend to theta_sft's rows"
            if name == "soup-tiny-answer":
                with tempfile.TemporaryDirectory() as directory:
                    path = Path(directory) / "merged"
                    stacked(root, c, path, base_dir, tokens)
                    peft_out = alora(base_dir, path, ids)
                off = (peft_out - out).abs().max().item()
                assert off < 5e-5, f"PEFT and the dense reference differ by {off}"
                out = peft_out
            keep = rows_kept(at)
            stored[f"{name}.{case}"] = out[keep].contiguous().clone()
            cases.append({"preference": mu.tolist(), "alpha": CASES[case]["alpha"], "tokens": ids,
                          "from": at, "rows": keep, "coefficients": list(c), "sft": c_sft})
        for index, one_hot in enumerate(singles[:3]):
            ids, at = prompt(0, tokens)
            merged = linear(base_dir, states, one_hot)
            out = rowwise(with_state(base_dir, states[3]), merged, ids, at)
            if name == "soup-tiny-answer":
                peft_out = alora(base_dir, root / "backbones" / NAMES[index], ids)
                off = (peft_out - out).abs().max().item()
                assert off < 5e-5, f"PEFT and the dense reference differ by {off}"
                out = peft_out
            stored[f"{name}.{NAMES[index]}"] = out[rows_kept(at)].contiguous().clone()
        document[name] = cases
    save_file(stored, FIXTURES / "answer-only.safetensors")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__,
                "peft": peft.__version__, "safetensors": safetensors.__version__,
                "tokenizers": tokenizers.__version__}
    document = {"generator": "tests/reference/make_answer_only.py", "seed": SEED, "versions": versions,
                "invocation": tokens, "soups": document}
    (FIXTURES / "answer-only.json").write_text(json.dumps(document) + "\n")


@torch.no_grad()
def logits_of(model, ids):
    return model(torch.tensor([ids])).logits[0].float()


def check(directory, case):
    document = json.loads((FIXTURES / "answer-only.json").read_text())
    one = document["soups"]["soup-tiny-answer"][int(case)]
    got = alora(FIXTURES / "soup-tiny/base", Path(directory), one["tokens"])[one["rows"]]
    want = load_file(FIXTURES / "answer-only.safetensors")[f"soup-tiny-answer.{case}"]
    worst = (got - want).abs().max().item()
    print(json.dumps({"case": int(case), "max_abs_difference": worst}))
    sys.exit(worst > 1e-4)


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    if sys.argv[1:2] == ["--check"]:
        check(*sys.argv[2:4])
    main()
