"""Greedy answers of a running ladle beside those of transformers on the same GGUF file, 20 prompts.

    ladle import FILE.gguf --name NAME --dtype f32
    (a soup over NAME whose adapters change nothing, or are small; served at URL)
    OMP_NUM_THREADS=1 python tests/reference/against_transformers.py FILE.gguf DIRECTORY URL [TOKENS]

DIRECTORY is what `ladle import` wrote: its tokenizer makes the ids for both. transformers computes
in f32 from the dequantised file. Prints what differs and ends with 1 if anything does.
"""

import json
import pathlib
import sys
import urllib.request

import torch
import transformers

PROMPTS = [
    "The capital of France is", "Once upon a time", "def fibonacci(n):\n", "The quick brown fox",
    "In 1969, humans", "Water boils at", "To make pancakes, you need",
    "  Two spaces  and a tab\t here", "Die Hauptstadt von Deutschland ist", "El perro",
    "1 + 1 = 2, 2 + 2 =", "<html>\n<body>", "Dear Sir or Madam,", "The meaning of life",
    "日本の首都は", "List of fruits: apple, banana,", "Roses are red,", "The stock market",
    "import numpy as np\n\n", "Héllo wörld 🎉",
]


def ask(url, prompt, tokens):
    solved = json.load(urllib.request.urlopen(f"{url}/v1/soup", timeout=60))
    names = [objective["name"] for objective in solved["objectives"]]
    body = {
        "prompt": prompt, "preference": {name: 1 for name in names}, "max_tokens": tokens,
        "temperature": 0,
    }
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{url}/generate", json.dumps(body).encode(), headers)
    return json.load(urllib.request.urlopen(request, timeout=600))


def main(file, directory, url, tokens):
    file = pathlib.Path(file)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(pathlib.Path(directory) / "tokenizer.json")
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()
    same = 0
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        with torch.no_grad():
            whole = model.generate(ids, max_new_tokens=tokens, do_sample=False, eos_token_id=None)
        expected = tokenizer.decode(whole[0, ids.shape[1] :], clean_up_tokenization_spaces=False)
        got = ask(url, prompt, tokens)
        ended = got["finish_reason"] == "stop" and expected.startswith(got["text"])
        if got["text"] == expected or ended:
            same += 1
        else:
            print(f"{prompt!r}: {got['text']!r}, transformers: {expected!r}")
    print(f"{same} of {len(PROMPTS)} equal, transformers {transformers.__version__}")
    return same == len(PROMPTS)


if __name__ == "__main__":
    sys.exit(not main(*sys.argv[1:4], int((sys.argv[4:] or [24])[0])))
