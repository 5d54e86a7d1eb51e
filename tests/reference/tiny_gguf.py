"""Tiny GGUF files with every storage type, and what the gguf package and transformers read in them.

    python tests/reference/tiny_gguf.py tests/fixtures/gguf

- tiny-llama.gguf   llama with Llama 3's rotary factors and pre-tokenizer; one storage type a tensor
                    (blocks of random bits with sane scales, as no Python writer makes k-quants)
- tiny-qwen2.gguf   qwen2: biases, an output head, Qwen2's pre-tokenizer
- tiny-llama2.gguf  llama with a SentencePiece vocabulary (scores, byte tokens), as Llama 2 has
- tiny-gemma3.gguf  gemma3: norms around both halves of a layer, stored with 1 added; a SentencePiece
                    vocabulary without a space before texts
- tiny-gemma2.gguf gemma2: the same norms without those of q and k; soft caps
- tiny-gemma.gguf   gemma: norms stored with 1 added
- tiny-phi3.gguf    phi3: q, k, v in one tensor, gate and up in one, heads rotated in part, longrope
- tiny-granite.gguf granite: four constant factors
- tiny-olmo2.gguf   olmo2: norms after both halves of a layer, norms over all of q and k
- tiny.json         sha256 of each dequantised tensor by Hugging Face name, the expected
                    configuration, and ids of some texts
"""

import hashlib
import importlib.metadata
import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import gguf
import numpy
import transformers
from gguf import GGMLQuantizationType as Q
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers.integrations.gguf import gguf_tokenizer_mapping as mapping
from transformers.tokenization_utils_base import generate_merges

SEED = 20261121
HIDDEN, HEADS, KV_HEADS, FF, VOCAB = 256, 8, 2, 256, 320
TEXTS = [
    "", "Hello world", "a  b   c\n\n d", "12345 1234 12 1", " 2024", "don't CAN'T", "<|end|>x<|end|>", "<tool>x",
    "naïve e\u0301 日本語 😀", "def f(x):\n\treturn x+1\r\n", "\t\t \u00a0x", "...!?/",
]
CORPUS = ["the cat sat on the mat and the hat", "hello hello world world 12 34", "def f(x): return x + 1"] * 3


def blocks(rng, kind: Q, shape) -> numpy.ndarray:
    """Random blocks of a storage type whose f16 scales are finite and small."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    rows, columns = shape
    raw = rng.integers(0, 256, (rows, columns // values, size), dtype=numpy.uint8)
    scales = {Q.Q4_0: [0], Q.Q4_1: [0, 2], Q.Q5_0: [0], Q.Q5_1: [0, 2], Q.Q8_0: [0], Q.Q2_K: [80, 82], Q.Q3_K: [108],
              Q.Q4_K: [0, 2], Q.Q5_K: [0, 2], Q.Q6_K: [208], Q.IQ4_NL: [0], Q.IQ4_XS: [0]}[kind]
    for at in scales:
        half = (rng.random((rows, columns // values)) * 0.01).astype(numpy.float16)
        raw[:, :, at : at + 2] = half[:, :, None].view(numpy.uint8)
    return raw.reshape(rows, -1)


def vocabulary(split: str, normalizer):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB - 4, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    types = [1] * len(tokens)
    for token, kind in (("<|begin|>", 3), ("<|end|>", 3), ("<tool>", 4)):
        tokens.append(token)
        types.append(kind)
    while len(tokens) < VOCAB:
        tokens.append(f"[PAD{len(tokens)}]")
        types.append(5)
    return tokenizer, tokens, types, [" ".join(pair) for pair in model["merges"]]


def sentencepiece(space: bool):
    """Pieces learned from the corpus, with scores that fall; merges as transformers derives them. `space`:
    one is put before a text."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=VOCAB - 259))
    learned = json.loads(learner.to_str())["model"]["vocab"]
    pieces = sorted(learned, key=lambda piece: (len(piece) == 1, learned[piece]))
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + pieces
    types = [2, 3, 3] + [6] * 256 + [1] * len(pieces)
    scores = [0.0] * 259 + [-float(index) for index in range(len(pieces))]
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = generate_merges(vocab, dict(zip(tokens, scores)))
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    prepend = [normalizers.Prepend("\u2581")] if space else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "\u2581")])
    return tokenizer, tokens, types, scores


def llama3_factors(theta: float, width: int, factor: float) -> numpy.ndarray:
    wavelengths = 2 * numpy.pi * theta ** (numpy.arange(0, width, 2) / width)
    smooth = numpy.clip((8192 / wavelengths - 1) / 3, 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(numpy.float32)


def make(path: Path, arch: str, pre: str, split: str, normalizer, kinds: dict, bias: bool, tied: bool) -> dict:
    rng = numpy.random.default_rng(SEED)
    writer = gguf.GGUFWriter(str(path), arch)
    writer.add_name("tiny")
    writer.add_block_count(1)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FF)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    scored, gemma = pre == "default", arch.startswith("gemma")
    if scored:
        tokenizer, tokens, types, scores = sentencepiece(not gemma)
        if gemma:
            writer.add_add_space_prefix(False)
            writer.add_key_length(HIDDEN // HEADS)
            writer.add_value_length(HIDDEN // HEADS)
        if arch in ("gemma2", "gemma3"):
            writer.add_sliding_window(64)
        if arch == "gemma2":
            writer.add_attn_logit_softcapping(20.0)
            writer.add_final_logit_softcapping(12.5)
        writer.add_tokenizer_model("llama")
        writer.add_token_scores(scores)
        writer.add_unk_token_id(0)
    else:
        tokenizer, tokens, types, merges = vocabulary(split, normalizer)
        writer.add_tokenizer_model("gpt2")
        writer.add_token_merges(merges)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    begin, end = (1, 2) if scored else (tokens.index("<|begin|>"), tokens.index("<|end|>"))
    writer.add_bos_token_id(begin)
    writer.add_eos_token_id(end)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}<|end|>{% endfor %}")
    digests = {}

    def add(name: str, hf: str, shape, heads: int | None = None) -> None:
        kind = kinds.get(name.removeprefix("blk.0."), Q.F32)
        if kind == Q.F32 or len(shape) == 1:
            data = rng.normal(0, 0.1, shape).astype(numpy.float32)
            added = numpy.float32(gemma and name.endswith("norm.weight"))
            writer.add_tensor(name, data + added)
            values = data + added - added
        elif kind == Q.F16:
            data = rng.normal(0, 0.1, shape).astype(numpy.float16)
            writer.add_tensor(name, data)
            values = data.astype(numpy.float32)
        elif kind == Q.BF16:
            data = gguf.quantize(rng.normal(0, 0.1, shape).astype(numpy.float32), kind)
            writer.add_tensor(name, data, raw_dtype=kind)
            values = gguf.dequantize(data, kind)
        else:
            data = blocks(rng, kind, shape)
            writer.add_tensor(name, data, raw_dtype=kind)
            values = gguf.dequantize(data, kind)
        if heads is not None:
            values = values.reshape(heads, -1, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        digests[hf] = hashlib.sha256(numpy.ascontiguousarray(values, dtype=numpy.float32).tobytes()).hexdigest()

    permuted = arch in ("llama", "granite")
    if arch == "granite":
        writer.add_attention_scale(0.015625)
        writer.add_embedding_scale(12.0)
        writer.add_residual_scale(0.22)
        writer.add_logit_scale(8.0)
    width, layer = HIDDEN // HEADS, "model.layers.0."
    kv = KV_HEADS * width
    add("token_embd.weight", "model.embed_tokens.weight", (VOCAB, HIDDEN))
    add("output_norm.weight", "model.norm.weight", (HIDDEN,))
    if not tied:
        add("output.weight", "lm_head.weight", (VOCAB, HIDDEN))
    if arch != "olmo2":
        add("blk.0.attn_norm.weight", layer + "input_layernorm.weight", (HIDDEN,))
    if arch == "olmo2":
        for part, hf, size in (
            ("post_ffw_norm", "post_feedforward_layernorm", HIDDEN),
            ("post_attention_norm", "post_attention_layernorm", HIDDEN),
            ("attn_q_norm", "self_attn.q_norm", HIDDEN), ("attn_k_norm", "self_attn.k_norm", kv),
        ):
            add(f"blk.0.{part}.weight", f"{layer}{hf}.weight", (size,))
    elif arch in ("gemma2", "gemma3"):
        for part, hf, size in (
            ("ffn_norm", "pre_feedforward_layernorm", HIDDEN), ("post_ffw_norm", "post_feedforward_layernorm", HIDDEN),
            ("post_attention_norm", "post_attention_layernorm", HIDDEN),
            ("attn_q_norm", "self_attn.q_norm", width), ("attn_k_norm", "self_attn.k_norm", width),
        ):
            if arch == "gemma3" or "self_attn" not in hf:
                add(f"blk.0.{part}.weight", f"{layer}{hf}.weight", (size,))
    else:
        add("blk.0.ffn_norm.weight", layer + "post_attention_layernorm.weight", (HIDDEN,))
    apart = arch != "phi3"
    if not apart:
        add("blk.0.attn_qkv.weight", layer + "self_attn.qkv_proj.weight", (HIDDEN + 2 * kv, HIDDEN))
        add("blk.0.ffn_up.weight", layer + "mlp.gate_up_proj.weight", (2 * FF, HIDDEN))
    for part, hf, rows, heads in (("q", "q_proj", HIDDEN, HEADS), ("k", "k_proj", kv, KV_HEADS), ("v", "v_proj", kv, None)) if apart else ():
        heads = heads if permuted else None
        add(f"blk.0.attn_{part}.weight", f"{layer}self_attn.{hf}.weight", (rows, HIDDEN), heads)
        if bias:
            add(f"blk.0.attn_{part}.bias", f"{layer}self_attn.{hf}.bias", (rows,))
    add("blk.0.attn_output.weight", layer + "self_attn.o_proj.weight", (HIDDEN, HIDDEN))
    for part, rows, columns in (("gate", FF, HIDDEN), ("up", FF, HIDDEN), ("down", HIDDEN, FF))[0 if apart else 2 :]:
        add(f"blk.0.ffn_{part}.weight", f"{layer}mlp.{part}_proj.weight", (rows, columns))
    scaling = None
    if arch == "llama" and not scored:
        writer.add_tensor("rope_freqs.weight", llama3_factors(500000.0, width, 8.0))
        scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                   "original_max_position_embeddings": 8192}
    if arch == "phi3":
        pairs = width * 3 // 8
        factors = [[1 + 0.125 * i for i in range(pairs)], [1 + 2.5 * i for i in range(pairs)]]
        for name, values in zip(("short", "long"), factors):
            writer.add_tensor(f"rope_factors_{name}.weight", numpy.array(values, dtype=numpy.float32))
        writer.add_rope_dimension_count(2 * pairs)
        writer.add_rope_scaling_orig_ctx_len(128)
        writer.add_rope_scaling_attn_factors(1.25)
        writer.add_sliding_window(0)
        scaling = {"rope_type": "longrope", "short_factor": factors[0], "long_factor": factors[1],
                   "attention_factor": 1.25}
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for token, kind in zip(tokens, types):
        if kind == 3:
            tokenizer.add_special_tokens([token])
        elif kind == 4:
            tokenizer.add_tokens([token])
    # The vocabulary keeps its padding tokens, which only the embedding table needs.
    config = {
        "model_type": arch, "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": FF, "num_hidden_layers": 1,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": width, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "rope_scaling": scaling, "tie_word_embeddings": tied,
        "bos_token_id": begin, "eos_token_id": end,
    }
    if arch == "gemma3":
        config |= {
            "model_type": "gemma3_text", "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": width,
            "sliding_window": 64, "rope_local_base_freq": 10000.0,
        }
    if arch == "gemma2":
        config |= {
            "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": width, "sliding_window": 64,
            "attn_logit_softcapping": 20.0, "final_logit_softcapping": 12.5,
        }
    if arch == "gemma":
        config |= {"hidden_act": "gelu_pytorch_tanh"}
    if arch == "phi3":
        config |= {"partial_rotary_factor": 0.75, "original_max_position_embeddings": 128, "sliding_window": None}
    if arch == "granite":
        config |= {
            "attention_multiplier": 0.015625, "embedding_multiplier": 12.0, "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
        }
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    return {"file": path.name, "config": config, "sha256": dict(sorted(digests.items())), "ids": ids, "begin": begin}


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    kinds = {
        "token_embd.weight": Q.Q8_0, "attn_q.weight": Q.Q4_K, "attn_k.weight": Q.Q5_1, "attn_v.weight": Q.Q6_K,
        "attn_output.weight": Q.Q5_K, "ffn_gate.weight": Q.Q2_K, "ffn_up.weight": Q.Q3_K, "ffn_down.weight": Q.Q4_1,
    }
    llama = make(out / "tiny-llama.gguf", "llama", "llama-bpe", mapping._LLAMA3_SPLIT, None, kinds, False, True)
    kinds = {
        "token_embd.weight": Q.F16, "output.weight": Q.Q4_0, "attn_q.weight": Q.BF16, "attn_k.weight": Q.Q5_0,
        "attn_v.weight": Q.F32, "attn_output.weight": Q.F16, "ffn_gate.weight": Q.Q4_0, "ffn_up.weight": Q.Q8_0, "ffn_down.weight": Q.Q5_0,
    }
    qwen = make(out / "tiny-qwen2.gguf", "qwen2", "qwen2", mapping._QWEN2_SPLIT, normalizers.NFC(), kinds, True, False)
    kinds = {name: Q.Q4_0 for name in ("token_embd.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight",
                                       "attn_output.weight", "ffn_gate.weight", "ffn_up.weight", "ffn_down.weight")}
    llama2 = make(out / "tiny-llama2.gguf", "llama", "default", "", None, kinds, False, True)
    gemma = make(out / "tiny-gemma3.gguf", "gemma3", "default", "", None, kinds, False, True)
    gemma2 = make(out / "tiny-gemma2.gguf", "gemma2", "default", "", None, kinds, False, True)
    gemma1 = make(out / "tiny-gemma.gguf", "gemma", "default", "", None, kinds, False, True)
    phi_kinds = {"token_embd.weight": Q.Q4_0, "output.weight": Q.Q4_0, "attn_qkv.weight": Q.Q4_0,
                 "attn_output.weight": Q.Q4_0, "ffn_up.weight": Q.Q8_0, "ffn_down.weight": Q.Q4_K}
    phi = make(out / "tiny-phi3.gguf", "phi3", "default", "", None, phi_kinds, False, False)
    split = mapping._LLAMA3_SPLIT
    codebooks = kinds | {"attn_q.weight": Q.IQ4_XS, "attn_output.weight": Q.IQ4_XS, "ffn_gate.weight": Q.IQ4_NL,
                         "ffn_up.weight": Q.Q4_K, "ffn_down.weight": Q.Q4_0}
    granite = make(out / "tiny-granite.gguf", "granite", "llama-bpe", split, None, codebooks, False, True)
    olmo = make(out / "tiny-olmo2.gguf", "olmo2", "dbrx", split, None, kinds, False, False)
    versions = {name: importlib.metadata.version(name) for name in ("gguf", "numpy", "tokenizers", "transformers")}
    value = {"versions": versions, "seed": SEED, "texts": TEXTS, "models": [llama, qwen, llama2, gemma, gemma2, gemma1, phi, granite, olmo]}
    (out / "tiny.json").write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
