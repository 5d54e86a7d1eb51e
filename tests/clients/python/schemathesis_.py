"""Schemathesis against /openapi.json: bodies that the description allows and bodies that it forbids, answers held to
what it says of them. hooks.py narrows preferences to the soup's own."""

import os
import subprocess
import sys
from pathlib import Path

from common import URL, WORK, drives, main

HOME = Path(__file__).resolve().parents[1] / "schemathesis"


@drives("every route of /openapi.json, examples, allowed and forbidden bodies")
def everything():
    run = [Path(sys.executable).parent / "schemathesis", "--config-file", HOME / "schemathesis.toml", "run"]
    run += [URL + "/openapi.json", *sys.argv[1:]]
    environment = {**os.environ, "PYTHONPATH": str(HOME), "SCHEMATHESIS_HOOKS": "hooks"}
    done = subprocess.run(run, env=environment, capture_output=True, text=True, cwd=WORK)
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stdout[-3000:]


main("schemathesis")
