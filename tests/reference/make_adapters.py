"""Makes tests/fixtures/adapters: one tiny adapter for every setting and every form of tensor name that
PEFT can write, and the logits that PEFT makes of it when it loads it again.

    python tests/reference/make_adapters.py

Six random bases (tied, untied, biased, fused, and two mixtures of experts) of 2 x 16 with 40 tokens. reference.json lists the keys that
PEFT writes, and for every case its base and either PEFT's logits or, where ladle refuses the adapter,
the key or tensor that the refusal must name.
"""

import json
import os
import shutil
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

import peft
import safetensors
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import (
    ArrowConfig, BdLoraConfig, CordaConfig, EvaConfig, KasaConfig, LoraGAConfig, MontecloraConfig,
    VeloraConfig,
)
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, Phi3Config,
    Phi3ForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM,
)

SEED = 20261128
ROOT = Path(__file__).resolve().parents[1] / "fixtures/adapters"
TOKENS = [3, 17, 28, 39, 7, 5]
SHAPE = dict(
    vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def make_base(name, seed):
    torch.manual_seed(seed)
    if name == "biased":
        model = Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=False, **SHAPE))
    elif name == "fused":
        model = Phi3ForCausalLM(Phi3Config(tie_word_embeddings=False, **SHAPE))
    elif name == "qwen3-moe":
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(
            head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12, mlp_only_layers=[0],
            norm_topk_prob=True, tie_word_embeddings=False, **SHAPE,
        ))
    elif name == "mixtral":
        model = MixtralForCausalLM(MixtralConfig(num_local_experts=3, tie_word_embeddings=False, **SHAPE))
    else:
        model = LlamaForCausalLM(LlamaConfig(tie_word_embeddings=name == "tied", **SHAPE))
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            tensor.normal_(0, 0.3)
            if key.endswith("norm.weight"):
                tensor.add_(1)
    model.save_pretrained(ROOT / name)
    (ROOT / name / "generation_config.json").unlink(missing_ok=True)


def base(name):
    return AutoModelForCausalLM.from_pretrained(ROOT / name, dtype=torch.float32).eval()


@torch.no_grad()
def logits(model):
    return model.eval()(torch.tensor([TOKENS])).logits[0].float()


def train(model, seed):
    """Moves everything that learns."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.requires_grad:
                tensor.add_(0.3 * torch.randn_like(tensor))


def edit(path, tensors=None, config=None):
    """Rewrites what PEFT saved."""
    if tensors:
        save_file(tensors(load_file(path / WEIGHTS)), path / WEIGHTS, metadata={"format": "pt"})
    document = json.loads((path / CONFIG).read_text())
    document["base_model_name_or_path"] = "base"
    for key in ("target_modules", "modules_to_save", "exclude_modules"):
        if isinstance(document.get(key), list):
            document[key].sort()
    if config:
        config(document)
    (path / CONFIG).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


QV = ["q_proj", "v_proj"]
CASES, KEYS = {}, set()


def case(name, on="tied", refused=None, reload=True, before=None, after=None, save=None, tensors=None,
         config=None, **settings):
    """One adapter: made, moved, saved, edited and loaded again by PEFT."""
    path = ROOT / name
    settings = {"task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": QV, **settings}
    model = base(on)
    lora = LoraConfig(**settings)
    if before:
        before(model, lora)
    model = get_peft_model(model, lora)
    train(model, SEED + len(CASES))
    if after:
        after(model)
    model.save_pretrained(path, **(save or {}))
    (path / "README.md").unlink(missing_ok=True)
    document = json.loads((path / CONFIG).read_text())
    KEYS.update(document)
    trained = logits(model)
    edit(path, tensors, config)
    entry = {"base": on}
    if refused:
        entry["refused"] = refused
    else:
        want = logits(PeftModel.from_pretrained(base(on), path)) if reload else trained
        moved = (want - logits(base(on))).abs().max().item()
        off = (want - trained).abs().max().item()
        assert moved > 1e-2, (name, moved)
        print(f"{name:34} moved {moved:.3f}, reload differs from the trained model by {off:.1e}")
        entry["logits"] = [[round(v, 7) for v in row] for row in want.tolist()]
    CASES[name] = entry


def written(name, refused, config=None, **settings):
    """Settings whose adapters PEFT makes only with other software: PEFT writes the settings."""
    path = ROOT / name
    path.mkdir(parents=True)
    settings = {"task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": QV, **settings}
    LoraConfig(**settings).save_pretrained(path)
    shutil.copy(ROOT / "plain" / WEIGHTS, path / WEIGHTS)
    edit(path, config=config)
    CASES[name] = {"base": "tied", "refused": refused}


def default_names(tensors):
    return {k.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default."): v
            for k, v in tensors.items()}


def with_value_head(tensors):
    return {**tensors, "v_head.summary.weight": torch.ones(1, 16), "v_head.summary.bias": torch.ones(1)}


def with_buffers(tensors):
    extra = {f"base_model.model.model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in (0, 1)}
    return {**tensors, **extra, "base_model.model.model.rotary_emb.inv_freq": torch.ones(4)}


def served():
    case("plain")
    case("dropout", lora_dropout=0.2)
    case("rslora", use_rslora=True, r=3)
    case("patterns", target_modules=["q_proj", "v_proj", "down_proj"], rank_pattern={"down_proj": 3},
         alpha_pattern={"layers.1.*.v_proj": 7})
    case("all-linear", target_modules="all-linear", r=1)
    case("target-pattern", target_modules=r".*\.layers\.1\..*(k_proj|up_proj)")
    case("excluded", target_modules=["q_proj", "v_proj", "o_proj"], exclude_modules=["layers.0.self_attn.q_proj"])
    case("excluded-pattern", target_modules=["q_proj", "v_proj", "o_proj"], exclude_modules=r".*0.*\.o_proj")
    case("layers", target_modules=QV, layers_to_transform=[1])
    case("one-layer", target_modules=QV, layers_to_transform=1)
    case("layers-pattern", target_modules=QV, layers_to_transform=[0], layers_pattern="layers")
    for init in ("gaussian", "eva", "orthogonal", "mica", False):
        case(f"init-{str(init).lower()}", init_lora_weights=init)
    case("init-configs", config=lambda c: c.update(corda_config={"corda_method": "ipm"}, eva_config={"rho": 2.0}))
    case("fan-in-fan-out", config=lambda c: c.update(fan_in_fan_out=True))
    case("old-settings", config=lambda c: [c.pop(k) for k in list(c) if k not in
         ("peft_type", "r", "lora_alpha", "target_modules", "bias", "fan_in_fan_out", "modules_to_save")])
    case("bfloat16", after=lambda m: m.to(torch.bfloat16).float(),
         tensors=lambda t: {k: v.to(torch.bfloat16) for k, v in t.items()})
    case("half", tensors=lambda t: {k: v.to(torch.float16) for k, v in t.items()})
    for bias in ("all", "lora_only"):
        case(f"bias-{bias.replace('_', '-')}", on="biased", bias=bias)
        case(f"bias-{bias.replace('_', '-')}-without-biases", bias=bias)
    case("saved-norm", modules_to_save=["norm"])
    case("saved-layer", on="biased", modules_to_save=["k_proj"])
    case("saved-container", modules_to_save=["layers.0.mlp"])
    for on in ("tied", "untied"):
        case(f"lora-head-{on}", on=on, target_modules=["q_proj", "lm_head"])
        case(f"saved-head-{on}", on=on, modules_to_save=["lm_head"])
        case(f"saved-embedding-{on}", on=on, modules_to_save=["embed_tokens"])
        case(f"saved-both-{on}", on=on, modules_to_save=["embed_tokens", "lm_head"])
        case(f"embeddings-too-{on}", on=on, save={"save_embedding_layers": True})
        case(f"lora-head-saved-embedding-{on}", on=on, target_modules=["q_proj", "lm_head"],
             modules_to_save=["embed_tokens"])
    case("tying-embedding", modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    case("tying-both", modules_to_save=["embed_tokens", "lm_head"], ensure_weight_tying=True)
    case("tying-nothing", ensure_weight_tying=True)
    case("default-names", tensors=default_names)
    case("value-head", tensors=with_value_head)
    case("buffers", tensors=with_buffers)

    def whole_state(tensors):
        return {k: v.clone() for k, v in whole_state.model.state_dict().items()}

    case("whole-state", on="untied", modules_to_save=["norm"], reload=False, tensors=whole_state,
         after=lambda m: setattr(whole_state, "model", m))


def refused():
    case("pissa", init_lora_weights="pissa", refused="init_lora_weights")
    case("pissa-niter", init_lora_weights="pissa_niter_4", refused="init_lora_weights")
    case("olora", init_lora_weights="olora", refused="init_lora_weights")
    written("loftq", "init_lora_weights", config=lambda c: c.update(
        init_lora_weights="loftq", loftq_config={"loftq_bits": 4, "loftq_iter": 1}))
    written("corda", "init_lora_weights", init_lora_weights="corda", corda_config=CordaConfig())
    written("lora-ga", "init_lora_weights", init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig())
    case("dora", use_dora=True, refused="use_dora")
    case("lora-bias", on="biased", lora_bias=True, refused="lora_bias")
    case("trainable-tokens", trainable_token_indices=[3, 5], refused="trainable_token_indices")
    case("target-parameters", target_modules=[], target_parameters=["q_proj.weight"])
    case("alora", alora_invocation_tokens=[3, 4], refused="alora_invocation_tokens")
    case("layer-replication", layer_replication=[[0, 2], [1, 2]], refused="layer_replication")
    case("lora-embedding", target_modules=["embed_tokens", "q_proj"], refused="lora_embedding_")
    case("kasa", kasa_config=KasaConfig(), refused="kasa_config")
    case("velora", velora_config=VeloraConfig(), refused="velora_config")
    case("monteclora", monteclora_config=MontecloraConfig(), refused="monteclora_config")
    written("bdlora", "use_bdlora", use_bdlora=BdLoraConfig(target_modules_bd_a=["q_proj"], nblocks=2))
    written("arrow", "arrow_config", arrow_config=ArrowConfig())
    written("qalora", "use_qalora", use_qalora=True)
    written("megatron", "megatron_config", megatron_config={"hidden_size": 16})

    def plain(name, refused, tensors=None, config=None, on="tied", **settings):
        case(name, on=on, refused=refused, tensors=tensors, config=config, **settings)

    plain("unknown-key", "use_tomorrow", config=lambda c: c.update(use_tomorrow=True))
    plain("other-kind", "peft_type", config=lambda c: c.update(peft_type="LOHA"))
    plain("layers-beside-pattern", "layers_to_transform",
          config=lambda c: c.update(target_modules=".*(q_proj|v_proj)", layers_to_transform=[0, 1]))
    plain("pattern-without-layers", "layers_pattern", config=lambda c: c.update(layers_pattern="layers"))
    plain("other-name", "lora_A.other",
          tensors=lambda t: {k.replace(".lora_A.", ".lora_A.other."): v for k, v in t.items()})
    plain("bare-layer", "q_proj.weight",
          tensors=lambda t: {**t, "base_model.model.model.layers.0.self_attn.q_proj.weight": torch.ones(16, 16)})
    plain("heads-differ", "lm_head.weight", save={"save_embedding_layers": True},
          tensors=lambda t: {**t, "base_model.model.lm_head.weight": torch.ones(40, 16)})
    plain("resized", "embed_tokens.weight",
          tensors=lambda t: {**t, "base_model.model.model.embed_tokens.weight": torch.ones(41, 16)})


def by_expert(tensors):
    """The names and factors that PEFT has for transformers 4, where each expert is three linear layers."""
    out = {}
    for name, factor in tensors.items():
        path, experts, rest = name.partition(".experts.")
        if not experts:
            out[name] = factor
            continue
        count, down = 4, not rest.startswith("base_layer")
        for expert in range(count):
            if ".lora_A." in name:
                part = factor.reshape(count, -1, factor.shape[1])[expert]
                parts = [part] if down else [part, part]
            else:
                part = factor.reshape(factor.shape[0], -1, count)[:, :, expert]
                parts = [part] if down else part.chunk(2)
            side = "lora_A" if ".lora_A." in name else "lora_B"
            for layer, part in zip(["down_proj"] if down else ["gate_proj", "up_proj"], parts):
                out[f"{path}.experts.{expert}.{layer}.{side}.weight"] = part.contiguous().clone()
    return out


def families():
    for offset, name in enumerate(("fused", "qwen3-moe", "mixtral")):
        make_base(name, SEED + 3 + offset)
    both = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    case("fused-projections", on="fused", target_modules=["qkv_proj", "gate_up_proj", "down_proj"])
    case("expert-parameters", on="qwen3-moe", target_parameters=[*both, "mlp.gate.weight"])
    case("expert-down", on="qwen3-moe", target_modules=[], target_parameters=["experts.down_proj"], use_rslora=True)
    case("expert-modules", on="qwen3-moe", target_modules=["q_proj", "gate_proj", "up_proj", "down_proj"])
    case("expert-linear-layers", on="qwen3-moe", target_parameters=both, tensors=by_expert,
         config=lambda c: c.update(target_parameters=None, target_modules=r".*((q|v)_proj|experts.*_proj)"))
    case("expert-saved", on="qwen3-moe", modules_to_save=["mlp.gate"])
    case("mixtral-modules", on="mixtral", target_modules=["q_proj", "w1", "w2", "w3"])
    case("mixtral-all-linear", on="mixtral", target_modules="all-linear", r=1)
    case("expert-left-over", on="qwen3-moe", target_parameters=both, refused="experts.base_layer.lora_A",
         config=lambda c: c.update(target_parameters=both[1:]))
    case("expert-missing", on="qwen3-moe", target_parameters=both[1:], refused="gate_proj.lora_A",
         config=lambda c: c.update(target_parameters=both))
    case("expert-rank", on="mixtral", target_parameters=both, refused="experts.base_layer.lora_A",
         config=lambda c: c.update(rank_pattern={"experts.gate_up_proj": 3}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    shutil.rmtree(ROOT, ignore_errors=True)
    for offset, name in enumerate(("tied", "untied", "biased")):
        make_base(name, SEED + offset)
    served()
    refused()
    families()
    document = {
        "generator": "tests/reference/make_adapters.py", "seed": SEED,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__,
                     "peft": peft.__version__, "safetensors": safetensors.__version__},
        "tokens": TOKENS, "keys": sorted(KEYS), "cases": CASES,
    }
    (ROOT / "reference.json").write_text(json.dumps(document) + "\n")
