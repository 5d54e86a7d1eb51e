"""Narrows what the description leaves open to what the server has: its objectives, presets and bounds, its name."""

import json
import os
import urllib.request

import schemathesis

URL = os.environ["LADLE_URL"]


def get(path):
    with urllib.request.urlopen(URL + path) as answer:
        return json.load(answer)


def forms(names, number):
    """A number for each objective, by name or in order."""
    by_name = {"type": "object", "properties": {name: number for name in names}, "additionalProperties": False}
    in_order = {"type": "array", "items": {**number, "type": "number"}, "minItems": len(names), "maxItems": len(names)}
    return [by_name, in_order, {"type": "null"}]


@schemathesis.hook
def before_load_schema(context, raw_schema):
    soup, schemas = get("/v1/soup"), raw_schema["components"]["schemas"]
    names = [objective["name"] for objective in soup["objectives"]]
    presets = {"enum": list(soup["presets"])}
    weight = {"type": ["number", "null"], "minimum": 0}
    schemas["Preference"]["anyOf"] = [*forms(names, weight), presets]
    bounds = {"minimum": soup["alpha"]["min"], "maximum": soup["alpha"]["max"]}
    alpha = {"type": ["number", "null"], **bounds}
    schemas["Alpha"]["anyOf"] = [*forms(names, alpha), {"type": "number", **bounds}]
    schemas["Model"] = {"enum": [soup["name"], None]}
    raw_schema["components"]["parameters"]["Preference"]["schema"] = presets
