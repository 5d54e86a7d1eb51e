"""Installs client libraries and drives them against one server; see scripts/test-clients.

Each client is a script in python/ or node/ with its own environment under target/clients. A script
prints one line of JSON: {"version", "checks": [{"drives", "error"}]}, error null where it works.
What all of them gave is kept in target/clients/results.json, and the table of docs/clients.md is made
of it. Ends with 1 where something does not work.
"""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORK = ROOT / "target/clients"
BINARY = ROOT / "target/release/ladle"
PATIENCE = 900


@dataclasses.dataclass
class Client:
    """A script, what it installs (the first package names the version), and how the table calls it."""

    name: str
    title: str
    packages: list[str]
    script: str

    def install(self):
        """The command that runs the script, in an environment that has its packages."""
        if not self.packages:
            return [sys.executable, HERE / self.script]
        place = WORK / self.name
        done, wanted = place / "installed.txt", "\n".join(self.packages)
        node = self.script.endswith(".mjs")
        if not done.is_file() or done.read_text() != wanted:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            if node:
                (place / "package.json").write_text('{"private": true}\n')
                run = ["npm", "install", "--silent", "--no-audit", "--no-fund", *self.packages]
                subprocess.run(run, cwd=place, check=True)
            else:
                python, uv = place / "venv/bin/python", shutil.which("uv")
                # Where uv is there, it takes a tenth of the time.
                venv = [uv, "venv", "--quiet", "--python", sys.executable] if uv else [sys.executable, "-m", "venv"]
                subprocess.run([*venv, place / "venv"], check=True)
                pip = [uv, "pip", "install", "--quiet", "--python", python] if uv else [python, "-m", "pip", "install", "--quiet"]
                subprocess.run([*pip, *self.packages], check=True)
            done.write_text(wanted)
        if node:
            # Node looks for packages beside the script.
            for source in (HERE / "node").iterdir():
                shutil.copy(source, place)
            return ["node", place / Path(self.script).name]
        return [place / "venv/bin/python", HERE / self.script]


CLIENTS = [
    Client("openai-python", "openai (Python)", ["openai==3.57.0"], "python/openai_.py"),
    Client("openai-node", "openai (Node)", ["openai@7.59.0"], "node/openai.mjs"),
    Client("openai-browser", "openai (in a page of Chromium)", ["openai@7.59.0"], "node/browser.mjs"),
    Client("anthropic", "anthropic (Python)", ["anthropic==2.14.0"], "python/anthropic_.py"),
    Client("litellm", "LiteLLM", ["litellm==1.110.2"], "python/litellm_.py"),
    Client("litellm-proxy", "LiteLLM's proxy", ["litellm[proxy]==1.108.7"], "python/litellm_proxy.py"),
    Client("langchain", "LangChain", ["langchain-openai==1.7.4"], "python/langchain_.py"),
    Client("llama-index", "LlamaIndex", ["llama-index-llms-openai-like==0.8.1"], "python/llama_index_.py"),
    Client("ai-sdk", "AI SDK, provider openai", ["@ai-sdk/openai@4.0.118", "ai@7.0.173", "zod@4.6.7"], "node/ai-sdk.mjs"),
    Client(
        "ai-sdk-compatible",
        "AI SDK, provider openai-compatible",
        ["@ai-sdk/openai-compatible@3.0.92", "ai@7.0.173", "zod@4.6.7"],
        "node/ai-sdk-compatible.mjs",
    ),
    Client("instructor", "instructor", ["instructor==1.17.0"], "python/instructor_.py"),
    Client("pydantic-ai", "Pydantic AI", ["pydantic-ai-slim[openai]==2.68.0"], "python/pydantic_ai_.py"),
    Client("llm", "llm (command line)", ["llm==0.36"], "python/llm_.py"),
    Client("lm-eval", "lm-evaluation-harness", ["lm_eval[api]==0.4.13"], "python/lm_eval_.py"),
    Client("guidellm", "GuideLLM", ["guidellm==0.8.1"], "python/guidellm_.py"),
    Client("vllm-bench", "vllm bench serve (the shape of its requests)", [], "python/vllm_bench.py"),
    Client("schemathesis", "Schemathesis", ["schemathesis==4.32.5"], "python/schemathesis_.py"),
]


class Server:
    """The tiny soup of the tests on a free port: its context made long enough for what libraries write into prompts,
    with a chat template that has a place for tools. Its weights are random, so that nothing rests on its wits."""

    def __enter__(self):
        soup = WORK / "soup"
        shutil.rmtree(soup, ignore_errors=True)
        shutil.copytree(ROOT / "tests/fixtures/soup-tiny", soup)
        config = json.loads((soup / "base/config.json").read_text())
        (soup / "base/config.json").write_text(json.dumps({**config, "max_position_embeddings": 8192}))
        shutil.copy(HERE / "chat_template.jinja", soup / "base")
        command = [BINARY, "serve", soup, "--port", "0", "--threads", "1", "--log-format", "json"]
        log = open(WORK / "server.log", "w+")
        self.process = subprocess.Popen([*command, "--offline", "--allow-origin", "*"], stderr=log)
        while True:
            lines = (WORK / "server.log").read_text().splitlines()
            for line in lines:
                fields = json.loads(line).get("fields", {}) if line.startswith("{") else {}
                if fields.get("message") == "listening":
                    self.url = f"http://{fields['address']}"
                if fields.get("message", "").startswith("try: "):
                    return self
            if self.process.poll() is not None:
                raise SystemExit(f"the server ended: {log.name}")

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def model(self):
        with urllib.request.urlopen(f"{self.url}/v1/models") as answer:
            return json.load(answer)["data"][0]["id"]


def drive(client, server):
    """What a client's script says of itself."""
    try:
        command = client.install()
    except (OSError, subprocess.CalledProcessError) as error:
        return {"version": "", "checks": [{"drives": "installs", "error": str(error)[-500:]}]}
    environment = {
        **os.environ,
        "LADLE_URL": server.url,
        "LADLE_MODEL": server.model(),
        "LADLE_WORK": str(WORK / client.name),
        "PYTHONDONTWRITEBYTECODE": "1",
        "NO_PROXY": "127.0.0.1",
        # No library asks for anything outside this machine.
        "HF_HUB_OFFLINE": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "DO_NOT_TRACK": "1",
    }
    (WORK / client.name).mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    (WORK / f"{client.name}.log").write_text(done.stdout + done.stderr)
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        return {"version": "", "checks": [{"drives": "runs", "error": done.stderr[-500:]}]}


def row(client, result):
    checks = result["checks"]
    failed = [check for check in checks if check["error"]]
    told = "; ".join(f"{check['drives']}: {check['error'].splitlines()[-1][:200]}" for check in failed)
    driven = ", ".join(check["drives"] for check in checks)
    result_ = "works" if not failed else f"{len(failed)} of {len(checks)} fail: {told}"
    return f"| {client.title} | {result['version']} | {driven} | {result_.replace('|', '/')} |"


def main():
    names = sys.argv[1:] or [client.name for client in CLIENTS]
    unknown = set(names) - {client.name for client in CLIENTS}
    if unknown:
        raise SystemExit(f"no client {', '.join(unknown)}; there are {', '.join(c.name for c in CLIENTS)}")
    WORK.mkdir(parents=True, exist_ok=True)
    kept = WORK / "results.json"
    results = json.loads(kept.read_text()) if kept.is_file() else {}
    with Server() as server:
        for client in CLIENTS:
            if client.name in names:
                results[client.name] = drive(client, server)
                print(row(client, results[client.name]), flush=True)
                kept.write_text(json.dumps(results, indent=1) + "\n")
    page = ROOT / "docs/clients.md"
    rows = [row(client, results[client.name]) for client in CLIENTS if client.name in results]
    table = "\n".join(["| client | version | driven | result |", "|---|---|---|---|", *rows])
    marks = r"(<!-- made by scripts/test-clients -->\n).*?(<!-- end -->)"
    text = re.sub(marks, lambda m: f"{m[1]}{table}\n{m[2]}", page.read_text(), flags=re.DOTALL)
    page.write_text(text)
    failed = [name for name in names if any(check["error"] for check in results[name]["checks"])]
    if failed:
        raise SystemExit(f"not everything works: {', '.join(failed)}")


if __name__ == "__main__":
    main()
