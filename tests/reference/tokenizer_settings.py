"""Makes tests/fixtures/tokenizer_settings.json: what transformers makes of a tokenizer.json beside files that change it.

Each case lays files beside the tokenizer of tests/fixtures/soup-tiny/base, whose own file it may edit
(JSON pointer → value), and records the ids of texts and the texts of the ids without special tokens.
transformers 5.24, tokenizers 0.23; no randomness.

    python tests/reference/tokenizer_settings.py
"""

import json
import logging
import shutil
import tempfile
from pathlib import Path

from transformers import AutoTokenizer

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
BASE = FIXTURES / "soup-tiny" / "base"
TEXTS = ["soup <|im_end|> x", "a 12 soup", " a<zz>b <zz> ", "<|im_start|>user", "sou ou"]


def token(content, **more):
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": False, **more}


def config(**settings):
    own = json.loads((BASE / "tokenizer_config.json").read_text())
    own.pop("chat_template", None)
    return {"tokenizer_config.json": {**own, **settings}}


def decoder(**tokens):
    return config(added_tokens_decoder={name.lstrip("n"): value for name, value in tokens.items()})


CASES = {
    "nothing": (config(), {}),
    "special tokens of a text are split": (config(split_special_tokens=True), {}),
    "special tokens of a text are tokens": (config(split_special_tokens=False), {}),
    "a new token": (decoder(n512=token("<zz>")), {}),
    "a new special token": (decoder(n512=token("<zz>", special=True)), {}),
    "a new token that takes the spaces around it": (decoder(n512=token("<zz>", lstrip=True, rstrip=True)), {}),
    "a new token that is a word of its own": (decoder(n512=token("<zz>", single_word=True)), {}),
    "a known token takes the space before it": (decoder(n2=token("<|im_end|>", special=True, lstrip=True)), {}),
    "a word of the vocabulary becomes a token": (decoder(n335=token("ou")), {}),
    "a special token is called plain": ({"tokenizer_config.json": {**decoder(n2=token("<|im_end|>"))["tokenizer_config.json"], "eos_token": "<|endoftext|>"}}, {}),
    "a named token is special whatever the file says": (config(), {"/added_tokens/2/special": False}),
    "a named token keeps its properties": (config(), {"/added_tokens/2/lstrip": True}),
    "further special tokens": (config(extra_special_tokens=["<zz>"]), {}),
    "further special tokens by their older name": (config(additional_special_tokens=["<zz>"]), {}),
    "further special tokens by name": (config(extra_special_tokens={"image_token": "<zz>"}), {}),
    "added_tokens.json": ({**config(), "added_tokens.json": {"<zz>": 512}}, {}),
    "added_tokens.json repeats the file": ({**config(), "added_tokens.json": {"<|im_end|>": 2}}, {}),
    "add_bos_token is left to the post-processor": (config(add_bos_token=True), {}),
    "lower case is left to the normalizer": (config(do_lower_case=True), {}),
    "add_prefix_space is left to the file": (config(add_prefix_space=True), {}),
}


def edit(document, pointer, value):
    *path, last = pointer.strip("/").split("/")
    for step in path:
        document = document[int(step) if isinstance(document, list) else step]
    document[int(last) if isinstance(document, list) else last] = value


def made(files, edits):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        shutil.copy(BASE / "config.json", folder)
        own = json.loads((BASE / "tokenizer.json").read_text())
        for pointer, value in edits.items():
            edit(own, pointer, value)
        for name, value in {**files, "tokenizer.json": own}.items():
            (folder / name).write_text(json.dumps(value))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = [tokenizer(text)["input_ids"] for text in TEXTS]
        texts = [tokenizer.decode(each, skip_special_tokens=True, clean_up_tokenization_spaces=False) for each in ids]
        return {"files": files, "edits": edits, "ids": ids, "texts": texts}


def main():
    logging.disable(logging.WARNING)
    cases = {name: made(files, edits) for name, (files, edits) in CASES.items()}
    text = json.dumps({"texts": TEXTS, "cases": cases}, indent=None, ensure_ascii=False, separators=(",", ":"))
    (FIXTURES / "tokenizer_settings.json").write_text(text + "\n")


main()
