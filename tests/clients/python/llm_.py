import json
import os
import subprocess
import sys
from pathlib import Path

from common import ASK, LENGTH, LONG, MODEL, SCHEMA, SEED, URL, WORK, drives, generated, is_dish, main, same

HOME = Path(WORK) / "home"
QUESTION = ASK[0]["content"]


def llm(*arguments):
    run = [Path(sys.executable).parent / "llm", *arguments]
    environment = {**os.environ, "LLM_USER_PATH": str(HOME)}
    done = subprocess.run(run, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done.stdout


def setup():
    HOME.mkdir(exist_ok=True)
    model = {"model_id": "ladle", "model_name": MODEL, "api_base": URL + "/v1", "supports_schema": True, "supports_tools": True}
    (HOME / "extra-openai-models.yaml").write_text(json.dumps([model]))
    (HOME / "keys.json").write_text(json.dumps({"openai": "none"}))


@drives("a prompt")
def prompt():
    got = llm("-m", "ladle", QUESTION, "--no-stream", "-o", "seed", str(SEED), "-o", "max_tokens", str(LENGTH))
    same(got.strip(), generated().strip())


@drives("streams")
def streams():
    got = llm("-m", "ladle", QUESTION, "-o", "seed", str(SEED), "-o", "max_tokens", str(LENGTH))
    same(got.strip(), generated().strip())


@drives("--schema")
def schema():
    answer = json.loads(llm("-m", "ladle", QUESTION, "--schema", json.dumps(SCHEMA), "-o", "max_tokens", str(LONG)))
    is_dish(answer)


setup()
main("llm")
