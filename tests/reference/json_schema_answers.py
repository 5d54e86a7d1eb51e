"""Validates answers against their schemas: a line of standard input is `[schema, answer]`, the answer
as text. Formats are checked. Made for jsonschema 4.26.0."""

import json
import sys

import jsonschema


def main():
    wrong, count = 0, 0
    for line in sys.stdin:
        schema, answer = json.loads(line)
        checker = jsonschema.Draft202012Validator(
            schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
        )
        checker.check_schema(schema)
        count += 1
        try:
            for error in checker.iter_errors(json.loads(answer)):
                wrong += 1
                print(f"{answer} under {schema}: {error.message}")
        except json.JSONDecodeError as error:
            wrong += 1
            print(f"{answer!r} under {schema}: {error}")
    if wrong == 0:
        print(f"{count} answers validate")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
