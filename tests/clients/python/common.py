"""What the scripts of clients share: where the server is, what to ask, and what /generate says to it."""

import importlib.metadata
import json
import os
import sys
import traceback
import urllib.request

URL = os.environ["LADLE_URL"]
MODEL = os.environ["LADLE_MODEL"]
WORK = os.environ["LADLE_WORK"]
KEY = "none"
ASK = [{"role": "user", "content": "Name a dish and say what is in it."}]
SEED, LENGTH = 7, 24
#: Enough for a structured answer, whose values all have an end.
LONG = 2000
SCHEMA = {
    "type": "object",
    "properties": {"vegan": {"type": "boolean"}, "course": {"enum": ["soup", "salad", "cake"]}},
    "required": ["vegan", "course"],
    "additionalProperties": False,
}
PLACE = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
CHECKS = []


def post(path, body):
    """What a route answers."""
    request = urllib.request.Request(URL + path, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def generated(**more):
    """The text that /generate gives to the same question with the same seed."""
    return post("/generate", {"messages": ASK, "seed": SEED, "max_tokens": LENGTH, **more})["text"]


def same(got, expected):
    assert got == expected, f"{got!r} is not {expected!r}"


def is_dish(value):
    """Whether an object is what SCHEMA describes."""
    assert set(value) == {"vegan", "course"}, value
    assert isinstance(value["vegan"], bool) and value["course"] in ("soup", "salad", "cake"), value


def drives(what):
    """Marks a function as a check of something."""

    def mark(check):
        CHECKS.append((what, check))
        return check

    return mark


def main(package, version=None):
    """Runs all checks and prints what they gave."""
    told = []
    for what, check in CHECKS:
        error = None
        try:
            check()
        except BaseException as wrong:
            traceback.print_exc()
            error = f"{type(wrong).__name__}: {wrong}"[:1000]
        told.append({"drives": what, "error": error})
    sys.stdout.flush()
    print(json.dumps({"version": version or importlib.metadata.version(package), "checks": told}))
