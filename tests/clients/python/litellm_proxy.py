import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from common import ASK, KEY, LENGTH, LONG, MODEL, PLACE, SEED, URL, WORK, drives, generated, main, same

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    PORT = free.getsockname()[1]
MASTER = "sk-" + secrets.token_hex(32)
PROXY = f"http://127.0.0.1:{PORT}"
SAY = {"model": "dish", "messages": ASK, "seed": SEED, "max_tokens": LENGTH}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Weather.", "parameters": PLACE}}]


def post(path, body):
    head = {"content-type": "application/json", "authorization": f"Bearer {MASTER}"}
    return urllib.request.urlopen(urllib.request.Request(PROXY + path, json.dumps(body).encode(), head))


def start():
    config = Path(WORK) / "config.yaml"
    model = {"model": f"openai/{MODEL}", "api_base": URL + "/v1", "api_key": KEY}
    # YAML that is JSON.
    config.write_text(json.dumps({"model_list": [{"model_name": "dish", "litellm_params": model}]}))
    command = [Path(sys.executable).parent / "litellm", "--config", config, "--host", "127.0.0.1", "--port", str(PORT)]
    log = open(Path(WORK) / "proxy.log", "w")
    environment = {**os.environ, "LITELLM_MASTER_KEY": MASTER}
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    end = time.monotonic() + 300
    while True:
        try:
            urllib.request.urlopen(PROXY + "/health/liveliness")
            return process
        except (urllib.error.URLError, ConnectionError):
            assert process.poll() is None and time.monotonic() < end, "the proxy did not start"
            time.sleep(0.5)


@drives("chat")
def chat():
    same(json.load(post("/v1/chat/completions", SAY))["choices"][0]["message"]["content"], generated())


@drives("streams")
def streams():
    text = ""
    for line in post("/v1/chat/completions", {**SAY, "stream": True}):
        data = line.decode().strip().removeprefix("data: ")
        if data.startswith("{"):
            text += json.loads(data)["choices"][0]["delta"].get("content") or ""
    same(text, generated())


@drives("tools")
def tools():
    body = {**SAY, "max_tokens": LONG, "tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    call = json.load(post("/v1/chat/completions", body))["choices"][0]["message"]["tool_calls"][0]
    same((call["function"]["name"], json.loads(call["function"]["arguments"])["city"] in ("Oslo", "Rome")), ("weather", True))


@drives("preferences")
def preferences():
    terse = {"preference": {"brief": 1}}
    answer = json.load(post("/v1/chat/completions", {**SAY, **terse}))
    same(answer["choices"][0]["message"]["content"], generated(**terse))


proxy = start()
try:
    main("litellm")
finally:
    proxy.terminate()
    proxy.wait()
