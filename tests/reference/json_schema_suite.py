"""Makes tests/fixtures/json-schema-suite.json of the JSON Schema Test Suite (MIT), as the source
distribution of the Python package jsonschema 4.26.0 carries it:

    pip download --no-deps --no-binary :all: jsonschema==4.26.0
    tar xzf jsonschema-4.26.0.tar.gz
    python tests/reference/json_schema_suite.py jsonschema-4.26.0/json

Kept are the cases of draft 2020-12 whose schemas stand alone: no documents to fetch, no `$id`,
anchors or vocabularies. Each case is [description, schema, [[instance, valid], …]].
"""

import json
import sys
from pathlib import Path

OUT = Path(__file__).resolve().parents[1] / "fixtures/json-schema-suite.json"
ALONE = ("$id", "$anchor", "$dynamicAnchor", "$dynamicRef", "$vocabulary")
FORMATS = ("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uuid")


def words(value):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from words(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from words(inner)


def alone(schema):
    return not any(
        key in ALONE or key == "$ref" and not str(inner).startswith("#") for key, inner in words(schema)
    )


def cases(path):
    for group in json.loads(path.read_text()):
        schema = group["schema"]
        if isinstance(schema, dict):
            schema = {key: value for key, value in schema.items() if key != "$schema"}
        if alone(schema):
            tests = [[test["data"], test["valid"]] for test in group["tests"]]
            yield [f"{path.stem}: {group['description']}", schema, tests]


def main():
    draft = Path(sys.argv[1]) / "tests/draft2020-12"
    # Optional for a validator that takes formats for remarks; a grammar holds an answer to them.
    optional = [draft / "optional/format" / f"{name}.json" for name in FORMATS]
    out = [case for path in sorted(draft.glob("*.json")) + optional for case in cases(path)]
    lines = ",\n".join(json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in out)
    OUT.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
