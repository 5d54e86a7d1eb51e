"""Checks that llama.cpp reads the activated LoRA that `ladle merge --adapter` writes and answers as ladle does.

usage: llama_adapter.py LADLE BASE LLAMA

LADLE is the binary, BASE a Hugging Face directory of a Llama-family chat model in f32, LLAMA the directory
that `benches/peers/setup ENV llama` makes (ENV/llama: sources of llama-cpp-python 0.3.36 with libllama built).
Two backbones of random factors (`benches/peers/adapters.py`) make a soup that is active on the answer only.
Its merge is converted by llama.cpp's own script; libllama gives the invocation tokens of the file, computes
the prompt before them without the adapter and the rest with it (activated LoRA's rule; llama-server itself
begins one token earlier), in f32. ladle's greedy answers must have the same tokens there, each with the
same log-probability to 2e-3, and differ from the base's. Needs torch, safetensors, transformers and gguf for
the conversion; prints one JSON object.
"""

import ctypes
import json
import math
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import types
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
PREFERENCE, TOKENS = {"one": 0.7, "two": 0.3}, 16
QUESTIONS = [
    "What is the capital of France?",
    "Summarise in one sentence: water boils at a hundred degrees.",
    "Name three primary colours.",
    "How is bread made?",
]


def ladle_answers(ladle, soup):
    """Prompt tokens, answer tokens and their log-probabilities of every question."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([ladle, "serve", "--soup", soup, "--port", str(port), "--log", "error"])

    def ask(path, body):
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request))

    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ready").read()
                break
            except OSError:
                assert server.poll() is None, "the server ended"
                time.sleep(0.2)
        answers = []
        for question in QUESTIONS:
            messages = {"messages": [{"role": "user", "content": question}]}
            body = {**messages, "preference": PREFERENCE, "max_tokens": TOKENS, "temperature": 0, "logprobs": 0,
                    "ignore_eos": True}
            tokens = ask("/generate", body)["tokens"]
            answers.append((ask("/tokenize", messages)["tokens"], tokens))
        return answers
    finally:
        server.terminate()
        server.wait()


class Llama:
    def __init__(self, sources, model, adapter):
        os.environ["LLAMA_CPP_LIB_PATH"] = str(sources / "build/bin")
        # The bindings alone: the package's __init__ wants more packages.
        package = types.ModuleType("llama_cpp")
        package.__path__ = [str(sources / "llama_cpp")]
        sys.modules["llama_cpp"] = package
        from llama_cpp import llama_cpp as lib

        self.lib = lib
        self.quiet = lib.llama_log_callback(lambda *_: None)
        lib.llama_log_set(self.quiet, None)
        lib.llama_backend_init()
        self.model = lib.llama_model_load_from_file(str(model).encode(), lib.llama_model_default_params())
        settings = lib.llama_context_default_params()
        settings.n_ctx, settings.type_k, settings.type_v, settings.flash_attn_type = 512, 0, 0, 0
        self.context = lib.llama_init_from_model(self.model, settings)
        self.adapter = lib.llama_adapter_lora_init(self.model, str(adapter).encode())
        count = lib.llama_adapter_get_alora_n_invocation_tokens(self.adapter)
        self.invocation = list(lib.llama_adapter_get_alora_invocation_tokens(self.adapter)[:count])
        self.vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))

    def use(self, on):
        adapters = (self.lib.llama_adapter_lora_p_ctypes * 1)(self.adapter)
        self.lib.llama_set_adapters_lora(self.context, adapters, int(on), (ctypes.c_float * 1)(1.0))

    def decode(self, tokens):
        # A batch points at its tokens.
        tokens = (self.lib.llama_token * len(tokens))(*tokens)
        assert self.lib.llama_decode(self.context, self.lib.llama_batch_get_one(tokens, len(tokens))) == 0

    def log_probs(self, prompt, answer, active_from):
        """Of each answer token: its log-probability, and whether it is the likeliest. The adapter acts from a
        position on; on no row where that is the prompt's length."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        start, found = min(active_from, len(prompt) - 1), []
        self.use(False)
        self.decode(prompt[:start])
        self.use(active_from < len(prompt))
        rest = prompt[start:]
        for token in answer:
            self.decode(rest)
            logits = self.lib.llama_get_logits_ith(self.context, -1)[: self.vocabulary]
            most = max(logits)
            total = math.log(sum(math.exp(logit - most) for logit in logits))
            found.append((logits[token] - most - total, logits[token] == most))
            rest = [token]
        return found


def main():
    ladle, base, sources = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    convert = sources / "vendor/llama.cpp"
    quiet = {"check": True, "stdout": subprocess.DEVNULL}
    with tempfile.TemporaryDirectory() as directory:
        at = pathlib.Path(directory)
        make = [sys.executable, ROOT / "benches/peers/adapters.py", base, at, "--names", "one,two"]
        subprocess.run(make, **quiet)
        backbones = [part for name in PREFERENCE for part in ("--backbone", f"{name}={at / name}")]
        init = [ladle, "init", at / "soup", "--name", "made", "--base", base, "--beta", "0.7", "--activation", "answer"]
        subprocess.run([*init, *backbones], **quiet)
        preference = ",".join(f"{name}={weight}" for name, weight in PREFERENCE.items())
        merge = [ladle, "merge", at / "soup", "--preference", preference, "--adapter", "--dtype", "f32"]
        subprocess.run([*merge, "--out", at / "merged"], **quiet)
        answers = ladle_answers(ladle, at / "soup")
        for script, more in [("convert_hf_to_gguf.py", [base, "--outfile", at / "base.gguf"]),
                             ("convert_lora_to_gguf.py", ["--base", base, "--outfile", at / "mix.gguf", at / "merged"])]:
            subprocess.run([sys.executable, convert / script, "--outtype", "f32", *more], **quiet)
        llama = Llama(sources, at / "base.gguf", at / "mix.gguf")
        off, same, unlike, count = 0.0, 0, 0, 0
        for prompt, answer in answers:
            length = len(llama.invocation)
            starts = [i for i in range(len(prompt)) if prompt[i : i + length] == llama.invocation]
            ids = [token["id"] for token in answer]
            theirs = llama.log_probs(prompt, ids, starts[-1])
            plain = llama.log_probs(prompt, ids, len(prompt))
            off = max(off, *(abs(ours["logprob"] - value) for ours, (value, _) in zip(answer, theirs)))
            same += sum(most for _, most in theirs)
            unlike += sum(not most for _, most in plain)
            count += len(ids)
    print(json.dumps({
        "llama_cpp_python": "0.3.36", "invocation": llama.invocation, "tokens": count, "same_as_ladle": same,
        "unlike_base": unlike, "largest_difference_in_log_probability": off,
    }))
    if same < count or unlike == 0 or off > 2e-3:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
