"""Reference values of SmolLM2-135M-Instruct, read from the same GGUF file by other programs.

    python tests/reference/smollm2.py FILE.gguf tests/fixtures/smollm2

writes four files, each with the versions that made it:

- tokens.json.gz   1,000 seeded strings and their ids by transformers' tokenizer. transformers'
                   GGUF reading leaves out SmolLM's first pre-tokenizer step (every digit alone),
                   which the published tokenizer.json and llama.cpp have; it is put back here, and
                   `differ_without_digits` lists the strings for which that matters.
- weights.json     sha256 of each tensor's f32 bytes: the gguf package's dequantisation, q/k rows in
                   Hugging Face order, by Hugging Face name.
- logits.json.gz   transformers f32 logits after some prompts: every 16th of the vocabulary.
- greedy.json      64 greedy tokens after 20 instructions, f32, with the smallest distance between
                   the best and the second logit on the way (a small one may fall either way).
"""

import gzip
import hashlib
import json
import os
import random
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import gguf
import numpy
import tokenizers
import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

SEED = 20261121
VERSIONS = {
    "gguf": getattr(gguf, "__version__", None) or __import__("importlib.metadata").metadata.version("gguf"),
    "numpy": numpy.__version__,
    "tokenizers": tokenizers.__version__,
    "torch": torch.__version__,
    "transformers": transformers.__version__,
    "seed": SEED,
}

WORDS = """the of and to in is that for it as was with be by on not he his but at are this have
from or had an they which one you were all her she there would their we him been has when who will
no more if out so said what up its about than into them can only other time new some could these
two may first then do any like my now over such our man me even most made after also did many
people's don't I'll we've you're I'm he'd CAN'T It'S naïve façade coöperate über Łódź""".split()
CODE = [
    "def f(x: int) -> int:\n    return x ** 2 + 1\n",
    "for (int i = 0; i < 10; ++i) {\n\tprintf(\"%d\\n\", i);\n}",
    "let x = vec![1u8, 2, 3].iter().map(|v| v + 1).collect::<Vec<_>>();",
    "SELECT * FROM users WHERE id = 42 AND name LIKE '%bob%';",
    "<div class=\"a b\"><p>Hi &amp; bye</p></div>",
    "{\"key\": [1, 2.5e-3, null, true], \"nested\": {\"a\": \"b\"}}",
    "#!/bin/sh\nset -eu\nls -la | grep '^d' > /tmp/out 2>&1\n",
    "git commit -m 'fix: off-by-one (#1234)'",
    "https://example.org/a/b?c=d&e=%20f#g",
    "\\frac{a_1}{b^{2}} \\leq \\sum_{i=0}^{n} x_i",
    "0x7fff_ffff != 1e-5 || !isNaN(NaN)",
]
EMOJI = "😀 🎉 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇯🇵 ❤️ ☕️ 🧑🏿‍🚀 1️⃣ ©®™ ✨✨✨ 🤷‍♀️ 🫠".split(" ")
SCRIPTS = [
    "今天天气很好，我们去公园散步吧。", "吾輩は猫である。名前はまだ無い。", "안녕하세요, 만나서 반갑습니다!",
    "Привет, как дела? Всё хорошо.", "Γειά σου Κόσμε", "مرحبا بالعالم ١٢٣", "שלום עולם", "नमस्ते दुनिया १२३",
    "สวัสดีชาวโลก", "Xin chào thế giới", "ሰላም ልዑል", "Türkiye'de İstanbul ığüşöç", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛",
    "e\u0301 vs é, A\u030a vs Å", "ﬁ ﬂ ½ ¾ ² ³ Ⅷ ① ㊿ 〇",
]
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>", "<file_sep>", "<|im_start|>user\nHi<|im_end|>\n",
           "<|im_start", "im_end|>", "<empty_output>", "<jupyter_code>", "<|IM_END|>"]
SPACES = [" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", " \n ", "\t\t ", "\u00a0", "\u3000", "\u2028", "\u200b", "\u200d", "\ufeff",
          "        ", " " * 17, "\n" * 5, "\v\f", "\x00", "\x01\x7f", "\x85"]
NUMBERS = ["0", "7", "42", "1234567890", "3.14159", "-273.15", "1,000,000", "2024-02-30", "12:34:56", "1e10", "007", "½", "²³", "٣", "Ⅷ", "①"]


def strings() -> list[str]:
    rng = random.Random(SEED)
    out = ["", " ", "\n", "a", "Hello world", "The quick brown fox jumps over the lazy dog."]
    out += CODE + EMOJI + SCRIPTS + SPECIAL + SPACES + NUMBERS
    out += [" ".join(EMOJI), "".join(SCRIPTS), "".join(SPECIAL), "".join(SPACES), " ".join(NUMBERS)]
    out += [f"{s}{n}" for s in (" ", "  ", "   ", "\n ", "\t", "x  ") for n in NUMBERS]
    out += ["a" * 5000, " " * 3000, "ab " * 2000, "😀" * 700, "0123456789" * 300, "\n" * 1000,
            " ".join(rng.choice(WORDS) for _ in range(3000))]
    pools = [WORDS, CODE, EMOJI, SCRIPTS, SPECIAL, SPACES, NUMBERS]
    weights = [40, 8, 8, 8, 6, 20, 10]
    while len(out) < 900:
        parts = []
        for _ in range(rng.randint(1, 14)):
            piece = rng.choice(rng.choices(pools, weights)[0])
            if rng.random() < 0.3 and len(piece) > 2:
                start = rng.randrange(len(piece) - 1)
                piece = piece[start : rng.randint(start + 1, len(piece))]
            parts.append(piece)
            if rng.random() < 0.6:
                parts.append(" ")
        out.append("".join(parts))
    while len(out) < 1000:  # any characters at all, surrogates excepted
        planes = [(0x00, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)]
        out.append("".join(chr(rng.randint(*rng.choice(planes))) for _ in range(rng.randint(1, 40))))
    return out


PROMPTS = [
    "What is the capital of France?",
    "Explain photosynthesis to a ten-year-old in two sentences.",
    "Write a haiku about the sea.",
    "List three tips for staying healthy.",
    "Translate 'good morning' into Spanish.",
    "What is 17 plus 25?",
    "Give me a recipe for pancakes.",
    "Summarize the plot of Romeo and Juliet.",
    "Write a Python function that reverses a string.",
    "Why is the sky blue?",
    "How do I remove a coffee stain from a shirt?",
    "Name five animals that live in the ocean.",
    "What causes the seasons to change?",
    "Write a short email asking a colleague to review a document.",
    "What is the difference between a virus and a bacterium?",
    "Tell me an interesting fact about octopuses.",
    "How can I improve my sleep?",
    "Describe the taste of a lemon to someone who has never eaten one.",
    "Who wrote Pride and Prejudice, and when?",
    "Suggest a name for a small bakery and explain why it fits.",
]


def write(path: Path, value: dict) -> None:
    text = json.dumps({"versions": VERSIONS, **value}, ensure_ascii=False, separators=(",", ":")) + "\n"
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode("utf-8"), 9, mtime=0))
    else:
        path.write_text(text.replace('],"', '],\n"').replace('},"', '},\n"'), encoding="utf-8")


def tokens(tokenizer) -> dict:
    texts = strings()
    backend = tokenizer.backend_tokenizer
    before = [backend.encode(text, add_special_tokens=False).ids for text in texts]
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    after = [backend.encode(text, add_special_tokens=False).ids for text in texts]
    differ = [i for i, (a, b) in enumerate(zip(before, after)) if a != b]
    decoded = [backend.decode(ids, skip_special_tokens=True) for ids in after]
    return {"differ_without_digits": differ, "strings": texts, "ids": after, "decoded": decoded}


def weights(path: str, heads: int, kv_heads: int) -> dict:
    digests = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
        name = tensor.name
        for ours, count in (("attn_q.", heads), ("attn_k.", kv_heads)):
            if ours in name:
                half = values.shape[0] // count // 2
                values = values.reshape(count, half, 2, -1).swapaxes(1, 2).reshape(values.shape)
        for theirs, hf in (
            ("token_embd.", "model.embed_tokens."), ("output_norm.", "model.norm."), ("blk.", "model.layers."),
            ("attn_norm.", "input_layernorm."), ("ffn_norm.", "post_attention_layernorm."),
            ("attn_q.", "self_attn.q_proj."), ("attn_k.", "self_attn.k_proj."), ("attn_v.", "self_attn.v_proj."),
            ("attn_output.", "self_attn.o_proj."), ("ffn_gate.", "mlp.gate_proj."), ("ffn_up.", "mlp.up_proj."),
            ("ffn_down.", "mlp.down_proj."),
        ):
            name = name.replace(theirs, hf)
        digests[name] = hashlib.sha256(numpy.ascontiguousarray(values).tobytes()).hexdigest()
    return {"sha256": dict(sorted(digests.items()))}


def chat(tokenizer, prompt: str) -> list[int]:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
    )
    return tokenizer.encode(text, add_special_tokens=False)


@torch.no_grad()
def logits(tokenizer, model) -> dict:
    prompts = [
        tokenizer.encode("Once upon a time", add_special_tokens=False),
        tokenizer.encode("def fibonacci(n):\n    if n <= 1:\n        return n\n", add_special_tokens=False),
        tokenizer.encode("今天天气很好 😀 2024", add_special_tokens=False),
        [1],
        chat(tokenizer, PROMPTS[0]),
        chat(tokenizer, " ".join(PROMPTS)),
    ]
    cases = []
    for ids in prompts:
        last = model(torch.tensor([ids])).logits[0, -1].float()
        cases.append({"ids": ids, "argmax": int(last.argmax()), "logits": [float(f"{v:.9g}") for v in last[::16].tolist()]})
    return {"stride": 16, "cases": cases}


@torch.no_grad()
def greedy(tokenizer, model) -> dict:
    cases = []
    for prompt in PROMPTS:
        ids = chat(tokenizer, prompt)
        out = model.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
            max_new_tokens=64, eos_token_id=2, pad_token_id=2, output_logits=True, return_dict_in_generate=True,
        )
        best = [step[0].float().topk(2).values for step in out.logits]
        margin = min(float(top[0] - top[1]) for top in best)
        new = out.sequences[0, len(ids) :].tolist()
        print(f"{margin:.4f} {prompt} -> {tokenizer.decode(new)!r}", flush=True)
        cases.append({"prompt": prompt, "ids": ids, "greedy": new, "margin": float(f"{margin:.3g}")})
    return {"cases": cases}


def main() -> None:
    path, out = sys.argv[1], Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    folder, name = os.path.split(os.path.abspath(path))
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    write(out / "tokens.json.gz", tokens(tokenizer))
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
    config = model.config
    write(out / "weights.json", weights(path, config.num_attention_heads, config.num_key_value_heads))
    write(out / "logits.json.gz", logits(tokenizer, model))
    write(out / "greedy.json", greedy(tokenizer, model))


if __name__ == "__main__":
    main()
