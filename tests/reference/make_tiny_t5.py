"""Makes tests/fixtures/soup-t5*: tiny random T5 soups as transformers and PEFT write them, and what
transformers and PEFT make of them.

    python tests/reference/make_tiny_t5.py

soup-t5: T5 v1.0 (tied embeddings, logits scaled, ReLU) with PEFT adapters on attention, on attention to
the encoder and on feed-forward layers, one of them with a saved norm; its config.json and weights have
the form that transformers 4 wrote. soup-t5-gated: T5 v1.1 (a head of its own, gated GELU) with full
checkpoints, as transformers 5 writes it. NAME-reference.json holds, for every prompt and model, the
prompt's tokens, GREEDY greedy tokens, and what `generate` gives until the answer ends, with its text;
NAME-reference.safetensors the logits of every STRIDE-th greedy token, `logits.MODEL.PROMPT` f32
[GREEDY / STRIDE, vocab]. What the adapters of soup-t5 change is PEFT's get_delta_weight, and the saved
norms; models of soup-t5-gated are torch sums in f64.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import peft
import tokenizers
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration, T5Tokenizer

# Of those where no greedy token hangs on a rounding and some answers end.
SEEDS = {"soup-t5": 20261100, "soup-t5-gated": 20261109}
GREEDY = 64
STRIDE = 9
FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
WORDS = """the soup is served from a ladle and every guest asks for another taste . what is a front ?
a preference is a point on the simplex : how much of each objective the reader wants .
merging the weights of several models gives one model that answers in between them ."""
LONG = " ".join(WORDS.split()[:30] * 4)  # farther apart than the last bucket begins
PROMPTS = ["question: what is a soup?", LONG, "a"]
# Coefficients (θ₁, θ₂, θ₃, θ_sft): of each model alone, between them and beyond.
MODELS = {
    "base": [0.0, 0.0, 0.0, 1.0],
    "first": [1.0, 0.0, 0.0, 0.0],
    "between": [0.25, 0.35, 0.4, 0.0],
    "beyond": [1.5, -0.75, 0.5, -0.25],
}
SHAPE = dict(
    d_model=16, num_heads=2, d_kv=6, d_ff=24, num_layers=2, num_decoder_layers=3,
    relative_attention_num_buckets=16, relative_attention_max_distance=80,
    decoder_start_token_id=0,
)


def tokenizer(path):
    words = list(dict.fromkeys(WORDS.split()))[:34]
    pieces = ["▁"] + list("abcdefghijklmnopqrstuvwxyz.?:") + ["in", "er", "th"]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary += [(piece, -6.0 + 0.01 * i) for i, piece in enumerate(pieces)]
    vocabulary += [(f"▁{word}", -4.0 - 0.01 * i) for i, word in enumerate(words)]
    vocabulary += [(f"<extra_id_{i}>", 0.0) for i in (1, 0)]
    T5Tokenizer(vocab=vocabulary, extra_ids=2).save_pretrained(path)
    return len(vocabulary)


def random(parameters, generator):
    with torch.no_grad():
        for name, tensor in sorted(parameters):
            noise = torch.randn(tensor.shape, generator=generator)
            if "layer_norm" in name:
                tensor.copy_(1 + 0.3 * noise)
            elif "relative_attention_bias" in name:
                tensor.copy_(noise)
            elif name.endswith(".q.weight"):
                tensor.copy_(noise * 1.3 / (SHAPE["d_kv"] * tensor.shape[1]) ** 0.5)
            else:
                tensor.copy_(noise * 1.3 / tensor.shape[1] ** 0.5)
            if name in ("shared.weight", "lm_head.weight"):
                tensor[1] *= 2  # some answers end


def base(path, config, seed):
    model = T5ForConditionalGeneration(config).float().eval()
    if not config.scale_decoder_outputs:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    random(model.named_parameters(), torch.Generator().manual_seed(seed))
    model.save_pretrained(path)
    return model


def as_version_4(path):
    """config.json and tensors as the first T5 checkpoints have them."""
    config = json.loads((path / "config.json").read_text())
    for key in ["scale_decoder_outputs", "dense_act_fn", "is_gated_act", "is_decoder", "dtype"]:
        config.pop(key, None)
    config |= {
        "n_positions": 512, "output_past": True, "torch_dtype": "float32",
        "task_specific_params": {"summarization": {"num_beams": 4, "prefix": "summarize: "}},
    }
    (path / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    weights = load_file(path / "model.safetensors")
    weights["encoder.embed_tokens.weight"] = weights["shared.weight"].clone()
    bias = weights["decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    weights["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = 0 * bias
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def adapter(base_dir, path, seed, **settings):
    model = T5ForConditionalGeneration.from_pretrained(base_dir, dtype=torch.float32)
    config = LoraConfig(task_type="SEQ_2_SEQ_LM", lora_dropout=0.0, **settings)
    model = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted(model.named_parameters()):
            noise = torch.randn(tensor.shape, generator=generator)
            if "lora_" in name:
                tensor.copy_(0.25 * noise)
            elif "modules_to_save" in name:
                tensor.add_(0.2 * noise)
    model.save_pretrained(path)
    (path / "README.md").unlink(missing_ok=True)
    config = json.loads((path / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "base"
    for key in ("target_modules", "modules_to_save"):
        if isinstance(config.get(key), list):
            config[key].sort()
    (path / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def full(model, path, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted(model.named_parameters()):
            tensor.add_(0.15 * tensor.std() * torch.randn(tensor.shape, generator=generator))
    model.save_pretrained(path, max_shard_size="40KB")


def answer(model, prompt):
    """Greedy tokens, end-of-sequence ones included, and their logits."""
    tokens, logits = [model.config.decoder_start_token_id], []
    with torch.no_grad():
        encoded = model.get_encoder()(torch.tensor([prompt]))
        for _ in range(GREEDY):
            ids = torch.tensor([tokens])
            out = model(encoder_outputs=encoded, decoder_input_ids=ids, use_cache=False)
            row = out.logits[0, -1]
            logits.append(row)
            tokens.append(int(row.argmax()))
    top = torch.stack(logits).topk(2).values
    assert (top[:, 0] - top[:, 1]).min() > 4e-4, "a tie"
    return tokens[1:], torch.stack(logits)


def until_end(model, prompt):
    """What `generate` gives: the tokens after the first one, without padding."""
    out = model.generate(torch.tensor([prompt]), max_new_tokens=GREEDY, do_sample=False, use_cache=False)
    return out[0, 1:].tolist()


def reference(name, models):
    tokenizer = AutoTokenizer.from_pretrained(FIXTURES / name / "base")
    tokens = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    logits, answers = {}, []
    for model_name, model in models:
        for index, prompt in enumerate(tokens):
            greedy, rows = answer(model, prompt)
            generated = until_end(model, prompt)
            answers.append({
                "model": model_name, "coefficients": MODELS[model_name], "prompt": index,
                "greedy": greedy, "generate": generated,
                "text": tokenizer.decode(generated, skip_special_tokens=True),
            })
            logits[f"logits.{model_name}.{index}"] = rows[::STRIDE].contiguous()
    document = {
        "versions": {
            "torch": torch.__version__, "transformers": transformers.__version__,
            "peft": peft.__version__, "tokenizers": tokenizers.__version__, "seed": SEEDS[name],
        },
        "prompts": PROMPTS, "tokens": tokens, "stride": STRIDE, "answers": answers,
    }
    (FIXTURES / f"{name}-reference.json").write_text(json.dumps(document) + "\n")
    save_file(logits, FIXTURES / f"{name}-reference.safetensors")


def manifest(path, kind):
    digest = lambda file: hashlib.sha256(file.read_bytes()).hexdigest()
    lines = ["format = 1", f'name = "{path.name}"', "", "[base]", 'path = "base"', "", "[base.sha256]"]
    lines += [f'"{f.name}" = "{digest(f)}"' for f in sorted((path / "base").glob("*.safetensors"))]
    lines += ["", "[mixing]", "beta = 0.7", "", "[extrapolation]", "alpha = 0.0", "bounds = [0.0, 2.0]"]
    for name in ["relevant", "factual", "complete"]:
        lines += ["", "[[objectives]]", f'name = "{name}"']
    for name in ["relevant", "factual", "complete"]:
        lines += ["", "[[backbones]]", f'name = "{name}"', f'path = "backbones/{name}"', f'kind = "{kind}"']
    lines += ["", "[sha256]"]
    files = sorted((path / "backbones").glob("*/*.safetensors"))
    lines += [f'"{f.relative_to(path)}" = "{digest(f)}"' for f in files]
    (path / "soup.toml").write_text("\n".join(lines) + "\n")


def fresh(name):
    path = FIXTURES / name
    shutil.rmtree(path, ignore_errors=True)
    (path / "base").mkdir(parents=True)
    return path


def adapters():
    path = fresh("soup-t5")
    vocabulary = tokenizer(path / "base")
    config = T5Config(vocab_size=vocabulary, feed_forward_proj="relu", **SHAPE)
    base(path / "base", config, SEEDS[path.name])
    as_version_4(path / "base")
    names = ["relevant", "factual", "complete"]
    settings = [
        dict(r=2, lora_alpha=4, target_modules=["q", "v"]),
        dict(r=3, lora_alpha=3, target_modules=r"decoder\..*(EncDecAttention\.(q|k|v|o)|wi|wo)"),
        dict(r=2, lora_alpha=2, use_rslora=True, target_modules=["k", "o", "wi", "wo"],
             modules_to_save=["final_layer_norm"]),
    ]
    for index, (name, setting) in enumerate(zip(names, settings)):
        adapter(path / "base", path / "backbones" / name, SEEDS[path.name] + index + 1, **setting)
    manifest(path, "adapter")

    def load():
        return T5ForConditionalGeneration.from_pretrained(path / "base", dtype=torch.float32).eval()

    wrapped = PeftModel.from_pretrained(load(), path / "backbones" / names[0], adapter_name=names[0])
    for name in names[1:]:
        wrapped.load_adapter(path / "backbones" / name, adapter_name=name)
    saved = load_file(path / "backbones/complete/adapter_model.safetensors")

    def merged(coefficients):
        model, weights = load(), dict(zip(names, coefficients))
        with torch.no_grad():
            for key, module in wrapped.named_modules():
                if isinstance(module, LoraLayer):
                    weight = model.get_submodule(key.removeprefix("base_model.model.")).weight
                    for name in module.lora_A:
                        weight.add_(weights[name] * module.get_delta_weight(name))
            for key, norm in model.named_parameters():
                if "final_layer_norm" in key:
                    own = saved[f"base_model.model.{key}"]
                    norm.add_(weights["complete"] * (own - norm))
        return model

    reference("soup-t5", ((name, merged(c)) for name, c in MODELS.items()))


def checkpoints():
    path = fresh("soup-t5-gated")
    vocabulary = tokenizer(path / "base")
    config = T5Config(
        vocab_size=vocabulary, feed_forward_proj="gated-gelu", tie_word_embeddings=False, **SHAPE
    )
    base(path / "base", config, SEEDS[path.name])
    load = lambda directory: T5ForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()
    names = ["relevant", "factual", "complete"]
    for index, name in enumerate(names):
        full(load(path / "base"), path / "backbones" / name, SEEDS[path.name] + 1 + index)
    manifest(path, "full")

    def merged(coefficients):
        model = load(path / "base")
        others = [dict(load(path / "backbones" / name).named_parameters()) for name in names]
        with torch.no_grad():
            for key, tensor in model.named_parameters():
                parts = [other[key].double() for other in others] + [tensor.double()]
                tensor.copy_(sum(c * part for c, part in zip(coefficients, parts)))
        return model

    reference("soup-t5-gated", ((name, merged(c)) for name, c in MODELS.items()))


if __name__ == "__main__":
    adapters()
    checkpoints()
