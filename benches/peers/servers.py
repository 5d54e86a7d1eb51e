"""The servers that are compared: how each is started, asked and read."""

import os
import pathlib
import re
import shutil
import subprocess

from load import MIXES, OBJECTIVES, coefficients, preference

ROOT = pathlib.Path(__file__).resolve().parents[2]
LADLE = os.environ.get("LADLE", str(ROOT / "target" / "release" / "ladle"))
CONTEXT = 512
# Of vLLM; its ranks are powers of two, and the merged adapters have 48.
LORA = ["--enable-lora", "--max-lora-rank", 64]


class Server:
    """A server process of one case. `clients` is the number that will ask at once, `context` the tokens of
    a prompt and its answer."""

    # Whether it must be started anew for another number of clients.
    per_clients = False
    ready = "/health"
    env = {}

    def __init__(self, env, model, port, case, clients, context=CONTEXT):
        self.at, self.port, self.case, self.clients, self.context = env, port, case, clients, context
        self.models = env / "models" / model
        self.base = self.models / "base"
        self.url = f"http://127.0.0.1:{port}"

    def weights(self):
        """Bytes that any server must hold: base and adapters, in bf16."""
        files = list(self.base.glob("*.safetensors"))
        files += [self.models / "adapters" / name / "adapter_model.safetensors" for name in OBJECTIVES]
        return sum(file.stat().st_size for file in files)


class Ladle(Server):
    ready = "/ready"
    # The server inherits it; here so that results say it.
    env = {name: os.environ[name] for name in ("LADLE_ISA",) if name in os.environ}

    def version(self):
        describe = ["git", "-C", pathlib.Path(LADLE).parent, "describe", "--always", "--dirty", "--exclude", "*"]
        commit = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip()
        return f"{run(LADLE, '--version')} ({commit or 'of no checkout'})"

    def command(self):
        # One soup per storage type of the base: a soup says which weights it was made for.
        soup = "soup" if self.case["dtype"] == "bf16" else f"soup-{self.case['dtype']}"
        return [LADLE, "serve", "--soup", self.models / soup, "--port", self.port, "--log", "warn",
                "--merge-cache", self.merge_cache(), *self.case["options"]]

    def merge_cache(self):
        """The default of 2 GiB, or the models that the case asks for; at least one: none is larger than
        what it is merged from."""
        return f"{max(2, -(-self.case['merged'] * self.weights() // 2**30))}GiB"

    def request(self, prompt, mix, tokens, seed):
        # Drawn without a seed: only for such requests does the cost model choose the mode.
        return "/generate", {
            "prompt": prompt, "preference": preference(mix, seed), "max_tokens": tokens, "temperature": 0.1,
            "ignore_eos": True, "stream": True,
        }

    def read(self, event):
        if "error" in event:
            return {"error": event["error"]["message"]}
        if "usage" in event:
            usage, timings = event["usage"], event["timings"]
            return {
                "tokens": usage["completion_tokens"], "prompt": usage["prompt_tokens"],
                "info": {"mode": event["mode"], "cache": event["cache"], **timings},
            }
        return {"text": event.get("text")} if "id" in event else {}


class LlamaCpp(Server):
    # It is slower with idle slots, so it gets as many as there are clients.
    per_clients = True

    def version(self):
        text = subprocess.run([self.binary(), "--version"], capture_output=True, text=True, check=True)
        return f"{text.stdout}{text.stderr}".strip()

    def binary(self):
        return self.at / "llama" / "build" / "bin" / "llama-server"

    def command(self):
        adapters = [a for name in OBJECTIVES for a in ("--lora", self.models / "adapters" / f"{name}.gguf")]
        cores = os.cpu_count()
        return [
            self.binary(), "-m", self.models / f"base-{self.case['dtype']}.gguf", "--port", self.port,
            "-t", cores, "-tb", cores, "-c", self.clients * self.context, "-np", self.clients, "--no-kv-unified",
            "--cache-ram", 0, "--no-webui", *self.case["options"],
            *([] if self.case["mixes"] == "none" else [*adapters, "--lora-init-without-apply"]),
        ]

    def request(self, prompt, mix, tokens, seed):
        body = {
            "prompt": prompt, "n_predict": tokens, "temperature": 0, "ignore_eos": True, "stream": True,
            "cache_prompt": False,
        }
        if self.case["mixes"] != "none":
            scales = coefficients(preference(mix, seed))
            body["lora"] = [{"id": i, "scale": scale} for i, scale in enumerate(scales)]
        return "/completion", body

    def read(self, event):
        if "error" in event:
            return {"error": event["error"]["message"]}
        if event.get("stop"):
            return {"tokens": event["tokens_predicted"], "prompt": event["tokens_evaluated"]}
        return {"text": event.get("content")}


class Vllm(Server):
    # Two libraries that its manual asks for on CPUs; the second is Debian's libtcmalloc-minimal4.
    PRELOAD = ["python/lib/libiomp5.so", "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"]

    @property
    def env(self):
        found = [str(self.at / name) for name in self.PRELOAD if (self.at / name).exists()]
        return {
            "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": f"0-{os.cpu_count() - 1}",
            "LD_PRELOAD": ":".join(found), "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
            "VLLM_PLUGINS": "",
        }

    def version(self):
        return run(self.at / "python" / "bin" / "python", "-c",
                   "from importlib.metadata import version as v; print('vllm-cpu', v('vllm-cpu'), 'torch', v('torch'))")

    def command(self):
        # Not the `vllm` command: it wants a distribution of that name.
        command = [
            self.at / "python" / "bin" / "python", "-m", "vllm.entrypoints.openai.api_server",
            "--model", self.base, "--served-model-name", "base", "--port", self.port,
            "--dtype", {"bf16": "bfloat16", "f32": "float32"}[self.case["dtype"]], "--max-model-len", self.context, "--max-num-seqs", 16, "--no-enable-prefix-caching",
        ]
        return command + self.lora()

    def lora(self):
        modules = [f"{name}={path}" for name, path in self.modules().items()]
        return [*LORA, "--max-loras", len(modules), "--lora-modules", *modules] if modules else []

    def modules(self):
        """Adapters by name: none, the soup's three, or one merged ahead for every mix."""
        if self.case["mixes"] == "none":
            return {}
        if self.case["mixes"] == "adapters":
            return {name: self.models / "adapters" / name for name in OBJECTIVES}
        return {f"mix{k}": self.models / "mixes" / str(k) for k in range(self.case["kinds"])}

    def prepare(self, seed):
        """Merges the mixes that are not there yet: rank 48 holds the sum of three of rank 16."""
        if self.case["mixes"] != "distinct":
            return
        for k, path in enumerate(self.modules().values()):
            weights = ",".join(f"{n}={w}" for n, w in zip(OBJECTIVES, preference(k, seed)))
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                run(LADLE, "merge", self.models / "soup", "--preference", weights, "--adapter", "--out", path)

    def request(self, prompt, mix, tokens, seed):
        names = list(self.modules()) or ["base"]
        return "/v1/completions", {
            "model": names[mix % len(names)], "prompt": prompt, "max_tokens": tokens, "temperature": 0,
            "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
        }

    def read(self, event):
        if "error" in event:
            return {"error": event["error"]["message"]}
        if event.get("usage"):
            return {"tokens": event["usage"]["completion_tokens"], "prompt": event["usage"]["prompt_tokens"]}
        return {"text": event["choices"][0]["text"]}


class VllmPlugIn(Vllm):
    """vLLM with deploy/vllm, which merges a preference at its first request."""

    @property
    def env(self):
        return super().env | {
            "VLLM_PLUGINS": "ladle", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "LADLE_SOUPS": str(self.models / "soup"),
            "LADLE_ADAPTERS": str(self.at / "plug-in-adapters"), "LADLE_BINARY": LADLE,
        }

    def modules(self):
        return {}

    def lora(self):
        return [*LORA, "--max-loras", MIXES]

    def prepare(self, seed):
        shutil.rmtree(self.env["LADLE_ADAPTERS"], ignore_errors=True)

    def request(self, prompt, mix, tokens, seed):
        path, body = super().request(prompt, mix, tokens, seed)
        weights = ",".join(f"{n}={w}" for n, w in zip(OBJECTIVES, preference(mix, seed)))
        return path, body | {"model": f"peers:{weights}"}


class MistralRs(Server):
    def version(self):
        return run(self.at / "python" / "bin" / "python", "-c",
                   "from importlib.metadata import version as v; print('mistralrs', v('mistralrs'))")

    def command(self):
        return [self.at / "python" / "bin" / "python", ROOT / "benches/peers/mistralrs_server.py", self.base, self.port,
                "--dtype", self.case["dtype"]]

    def request(self, prompt, mix, tokens, seed):
        return "/v1/completions", {"prompt": prompt, "max_tokens": tokens}

    def read(self, event):
        return event


def run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed: {done.stderr.strip()[-400:]}")
    return re.sub(r"\s+", " ", done.stdout).strip()


def ladle(mixes, *options, dtype="bf16", merged=1):
    return {"server": Ladle, "mixes": mixes, "options": list(options), "dtype": dtype, "merged": merged}


def llama(mixes, dtype, *options):
    return {"server": LlamaCpp, "mixes": mixes, "options": list(options), "dtype": dtype}


# `mixes`: what a request asks for. none: the base; shared: all the same mix; distinct: each client
# its own; turns: each request the next mix; adapters: each one of the three adapters, unmixed; fresh and
# arrivals: see serve.py.
CASES = {
    "ladle/shared": ladle("shared"),
    "ladle/distinct": ladle("distinct"),
    "ladle/shared-mixed": ladle("shared", "--merge-mode", "mixed"),
    "ladle/distinct-mixed": ladle("distinct", "--merge-mode", "mixed"),
    # Room for all mixes, so that what is measured is fused passes and not eviction.
    "ladle/distinct-fused": ladle("distinct", "--merge-mode", "fused", merged=16),
    "ladle/distinct-q8_0": ladle("distinct", dtype="q8_0"),
    "ladle/turns": ladle("turns"),
    "ladle/fresh": ladle("fresh"),
    "ladle/arrivals": ladle("arrivals"),
    "ladle/arrivals-hot": ladle("arrivals-hot"),
    "llama.cpp/none": llama("none", "bf16"),
    "llama.cpp/shared": llama("shared", "bf16"),
    "llama.cpp/distinct": llama("distinct", "bf16"),
    "llama.cpp/none-q8_0": llama("none", "q8_0"),
    "llama.cpp/distinct-q8_0": llama("distinct", "q8_0"),
    "mistral.rs/none": {"server": MistralRs, "mixes": "none", "dtype": "bf16"},
    "mistral.rs/none-f32": {"server": MistralRs, "mixes": "none", "dtype": "f32"},
    "vllm/none": {"server": Vllm, "mixes": "none", "dtype": "bf16"},
    "vllm/none-f32": {"server": Vllm, "mixes": "none", "dtype": "f32"},
    "vllm/adapters": {"server": Vllm, "mixes": "adapters", "dtype": "bf16"},
    "vllm/distinct": {"server": Vllm, "mixes": "distinct", "dtype": "bf16", "kinds": MIXES},
    **{
        f"vllm/plug-in-{mixes}{end}": {"server": VllmPlugIn, "mixes": mixes, "dtype": dtype}
        for end, dtype in (("", "bf16"), ("-f32", "f32")) for mixes in ("shared", "distinct", "turns", "fresh")
    },
}
