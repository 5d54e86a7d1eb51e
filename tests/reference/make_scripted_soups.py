"""Makes tests/fixtures/scripted-*: soups whose next token is a fixed function of the last one, so
that a test can force any tokens, and what the tokenizers make of them.

    python tests/reference/make_scripted_soups.py

scripted-bytes has a byte-level tokenizer, scripted-pieces a SentencePiece one with byte fallback and
a begin-of-sequence token. Scripts begin at a prompt and go from token to token by a one-hot
embedding; a token without a script is followed by the end of sequence. The two adapters are zero, so
every preference gives the base. Beside the soups stands scripted.json: for each script its prompt,
ids, and the text that decoding prompt and answer together adds to the prompt's.
"""

import hashlib
import json
import shutil
from pathlib import Path

import safetensors
import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
HIDDEN = 128
CHAT = (
    "{%- if bos -%}{{ bos_token }}{%- endif -%}"
    "{%- if enable_thinking is defined and not enable_thinking -%}no thinking{%- endif -%}"
    "{%- if reasoning_effort is defined -%}{{ reasoning_effort }} effort{%- endif -%}"
    "{%- if documents is not none -%}{%- for document in documents -%}[{{ document.title }}]{%- endfor -%}{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message.role == 'system' -%}{{ raise_exception('no system turns: ' ~ message.content) }}{%- endif -%}"
    "{{ message.name ~ ': ' if message.name }}{{ message.reasoning_content }}{{ message.content }}"
    "{%- endfor -%}"
)


class Script:
    """A vocabulary and the token that follows each."""

    def __init__(self, vocabulary, end):
        self.vocabulary, self.end = vocabulary, end
        self.next, self.cases = {}, []

    def token(self, spelling):
        return self.vocabulary.setdefault(spelling, len(self.vocabulary))

    def add(self, name, start, *spellings, ends=True):
        ids = [self.token(spelling) for spelling in spellings]
        last = self.token(start)
        for following in ids + ([self.end] if ends else ids[:1]):
            assert last not in self.next, (name, last)
            self.next[last] = following
            last = following
        self.cases.append({"name": name, "prompt": start, "ids": ids})


def byte_level():
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}

    def spell(text):
        return "".join(alphabet[byte] for byte in (text.encode() if isinstance(text, str) else text))

    special = ["<|end|>", "<|turn|>", "<|tool|>", "<|stop|>", "<|call|>", *[f"<s{n}>" for n in range(1, 20)]]
    script = Script({token: index for index, token in enumerate(special)}, 0)
    for byte in range(256):
        script.token(alphabet[byte])

    def add(name, start, *texts, **options):
        script.add(name, start, *[text if text in special else spell(text) for text in texts], **options)

    add("words", "<s1>", "alpha", " be", "ta", " gam", "ma", " delta")
    add("emoji in two", "<s2>", "Hi ", b"\xf0\x9f", b"\x98\x80", " done")
    add("a special token between", "<s3>", "foo", "<|tool|>", "bar")
    add("bytes that are no text", "<s4>", "x", b"\xff\xfe", "y", b"\xe4\xbd")
    add("no end", "<s5>", "loop", " again", ends=False)
    add("a character and parts of others in one token", "<s6>", b"\xf0", b"\x9f\x91", b"\xa9\xe2\x80\x8d", b"\xf0\x9f\x92", b"\xbb", " joined")
    add("a special token first", "<s7>", "<|stop|>", "after")
    add("held back", "<s8>", "one", " STO", "Pover", " STOP", "here")
    add("spaces at both ends", "<s9>", " lead", " trail ")
    add("separators of lines", "<s10>", "a\u2028", "b\r\n", "c\n\n", "data: d", "\x00e", "\x1bf")
    add("three bytes one by one", "<s11>", "日", b"\xe6", b"\x9c", b"\xac", "語")
    add("a special token inside a character", "<s12>", b"\xc3", "<|call|>", b"\xa9z")
    # What follows these is up to the grammar of a request with tools.
    add("text and the beginning of a call", "<s13>", "Let me", " look.", "\n<tool", "_call>\n{")
    add("the beginning of a call", "<s14>", '{"na')

    tokenizer = Tokenizer(models.BPE(vocab=script.vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    config = {"eos_token": "<|end|>", "chat_template": CHAT.replace("bos -", "false -")}
    return script, tokenizer, config


def pieces():
    script = Script({"<unk>": 0, "<s>": 1, "</s>": 2}, 2)
    for byte in range(256):
        script.token(f"<0x{byte:02X}>")
    for character in "▁abcdefghijklmnopqrstuvwxyzTP.,\n":
        script.token(character)
    merges = []

    def word(text):
        """Makes `text` a token that encoding finds."""
        for end in range(2, len(text) + 1):
            script.token(text[:end])
            if (text[: end - 1], text[end - 1]) not in merges:
                merges.append((text[: end - 1], text[end - 1]))
        return text

    def spell(text):
        return [f"<0x{byte:02X}>" for byte in text.encode()]

    script.add("a space before the answer", word("▁is"), word("▁Paris"), word("▁and"), "▁▁two")
    script.add("no space before the answer", word("▁glue"), "joined", word("▁next"))
    script.add("bytes of a character", word("▁smile"), "▁ok", *spell("😀"), "tail")
    script.add("bytes of two characters", word("▁pair"), *spell("é日"), word("▁then"))
    script.add("spaces only", word("▁gap"), "▁", "▁▁two▁", ".")
    script.add("a special token between", word("▁mark"), word("▁left"), "<unk>", word("▁right"))
    script.add("after nothing but the beginning", "<s>", word("▁The"), word("▁end"))

    tokenizer = Tokenizer(models.BPE(vocab=script.vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "chat_template": CHAT.replace("bos -", "true -")}
    return script, tokenizer, config


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


def write_soup(name, script, tokenizer, settings):
    folder = FIXTURES / name
    shutil.rmtree(folder, ignore_errors=True)
    base, vocabulary = folder / "base", len(script.vocabulary)
    base.mkdir(parents=True)
    tokenizer.save(str(base / "tokenizer.json"))
    write_json(base / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"} | settings)
    write_json(base / "config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16",
        "vocab_size": vocabulary, "hidden_size": HIDDEN, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "hidden_act": "silu",
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 512,
        "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
        "bos_token_id": 1, "eos_token_id": script.end,
    })
    assert len(script.next) <= HIDDEN, len(script.next)
    embedding, head = torch.zeros(vocabulary, HIDDEN), torch.zeros(vocabulary, HIDDEN)
    for place, (last, following) in enumerate(sorted(script.next.items())):
        embedding[last, place] = 1
        head[following, place] = 1
    # What has no script: the last place is nobody's, and every other token points to it.
    assert len(script.next) < HIDDEN
    for token in range(vocabulary):
        if token not in script.next:
            embedding[token, HIDDEN - 1] = 1
    head[script.end, HIDDEN - 1] = 1
    layer = "model.layers.0."
    tensors = {
        "model.embed_tokens.weight": embedding, "lm_head.weight": head, "model.norm.weight": torch.ones(HIDDEN),
        layer + "input_layernorm.weight": torch.ones(HIDDEN), layer + "post_attention_layernorm.weight": torch.ones(HIDDEN),
        layer + "self_attn.q_proj.weight": torch.zeros(64, HIDDEN), layer + "self_attn.k_proj.weight": torch.zeros(32, HIDDEN),
        layer + "self_attn.v_proj.weight": torch.zeros(32, HIDDEN), layer + "self_attn.o_proj.weight": torch.zeros(HIDDEN, 64),
        layer + "mlp.gate_proj.weight": torch.zeros(32, HIDDEN), layer + "mlp.up_proj.weight": torch.zeros(32, HIDDEN),
        layer + "mlp.down_proj.weight": torch.zeros(HIDDEN, 32),
    }
    save_file({key: value.bfloat16() for key, value in tensors.items()}, base / "model.safetensors", metadata={"format": "pt"})
    digests = {}
    for backbone in ("left", "right"):
        adapter = folder / "backbones" / backbone
        write_json(adapter / "adapter_config.json", {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "base", "r": 1, "lora_alpha": 1,
            "lora_dropout": 0.0, "target_modules": ["down_proj"], "bias": "none", "fan_in_fan_out": False, "use_rslora": False,
            "use_dora": False, "modules_to_save": None, "inference_mode": True, "init_lora_weights": True,
        })
        prefix = f"base_model.model.{layer}mlp.down_proj.lora_"
        weights = {prefix + "A.weight": torch.zeros(1, 32), prefix + "B.weight": torch.zeros(HIDDEN, 1)}
        path = adapter / "adapter_model.safetensors"
        save_file(weights, path, metadata={"format": "pt"})
        digests[f"backbones/{backbone}/adapter_model.safetensors"] = hashlib.sha256(path.read_bytes()).hexdigest()
    digest = hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest()
    listed = "".join(f'"{path}" = "{digest}"\n' for path, digest in sorted(digests.items()))
    sides = "".join(
        f'\n[[objectives]]\nname = "{side}"\ndescription = "The {side} one."\nrange = [0.0, 1.0]\n'
        f'\n[[backbones]]\nname = "{side}"\npath = "backbones/{side}"\nkind = "adapter"\n' for side in ("left", "right")
    )
    (folder / "soup.toml").write_text(
        f'format = 1\nname = "{name}"\n\n[base]\npath = "base"\n\n[base.sha256]\n"model.safetensors" = "{digest}"\n\n'
        f"[mixing]\nbeta = 0.7\n{sides}\n[sha256]\n{listed}"
    )


def expected(script, tokenizer):
    for case in script.cases:
        text = case["prompt"].replace("▁", " ").removeprefix(" ")
        prompt = tokenizer.encode(text, add_special_tokens=case["prompt"] != "<s>").ids
        whole = tokenizer.decode(prompt + case["ids"], skip_special_tokens=True)
        yield case | {"prompt": text, "prompt_ids": prompt, "text": whole.removeprefix(tokenizer.decode(prompt, skip_special_tokens=True))}


def main():
    out = {"versions": {"tokenizers": tokenizers.__version__, "safetensors": safetensors.__version__}}
    for name, make in (("scripted-bytes", byte_level), ("scripted-pieces", pieces)):
        script, tokenizer, settings = make()
        write_soup(name, script, tokenizer, settings)
        out[name] = list(expected(script, tokenizer))
    write_json(FIXTURES / "scripted.json", out)


if __name__ == "__main__":
    main()
