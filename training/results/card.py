"""Tables of a soup's card, from the front.json of an evaluation.

    python training/results/card.py DIR [--method NAME --preferences "1,0,0;0.5,0.5,0" --rows 4]

DIR holds front.json and samples.csv or samples.csv.gz. A row for each method and preference, raw rewards
as they are, † where θ_sft is better in all of them; a row of figures for each method in σ; the answers of
one method to the first rows. Standard library only.
"""

import argparse
import csv
import gzip
import json
import pathlib

REGIONS = ("interior", "edges", "corners")


def number(value, digits=3):
    return "—" if value is None else f"{value:.{digits}f}"


def rounded(weights):
    """A preference, normalised, as a key."""
    weights = list(weights)
    return tuple(round(weight / sum(weights), 3) for weight in weights)


def gain(found):
    return "—" if not found else f"{found['mean']:+.2f} ({found['low']:+.2f} to {found['high']:+.2f})"


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def share(preference):
    return ", ".join(f"{weight:.2g}" for weight in preference)


def points(front, names):
    rows = []
    for method in front["methods"]:
        found = method["points"][:1] if method["method"] == "θ_sft" else method["points"]
        for point in found:
            mu = "any" if method["method"] == "θ_sft" else share(point["preference"])
            text = point["text"]
            mark = " †" if point["dominated"] else ""
            means = [number(value) for value in point["mean"]]
            rows.append([method["method"], mu + mark, *means, number(text["words"], 1), number(text["finished"], 2), number(point["kl"], 1)])
    return table(["method", "μ", *names, "words", "ended", "KL"], rows)


def figures(front):
    rows = []
    for method in front["methods"]:
        metrics, regions, gains = method["metrics"], method["regions"], method["gain"] or {}
        means = [number(regions.get(region), 2) for region in REGIONS]
        over = [gain(gains.get(region)) for region in ("interior", "all")]
        control = metrics["controllability"] / front["controllability_ceiling"]
        dominated = sum(point["dominated"] for point in method["points"])
        rows.append([method["method"], *means, *over, number(metrics["hypervolume"], 2), number(control, 2), str(dominated)])
    header = ["method", "inside", "edges", "corners", "gain inside", "gain of all", "hypervolume", "controllability/ceiling", "dominated"]
    return table(header, rows)


def answers(directory, names, method, preferences, count):
    packed = directory / "samples.csv.gz"
    with gzip.open(packed, "rt", newline="") if packed.exists() else open(directory / "samples.csv", newline="") as file:
        samples = list(csv.DictReader(file))
    rows = list(dict.fromkeys(sample["row"] for sample in samples))[:count]
    at = lambda sample: rounded(float(sample[f"mu:{name}"]) for name in names)
    found = {(at(s), s["row"]): s["response"].strip() for s in samples if s["method"] == method}
    line = lambda row: [f"`{row}`", *[found[preference, row].replace("|", "\\|") for preference in preferences]]
    return table(["row", *map(share, preferences)], map(line, rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--method", default="bone soup (clamped)")
    parser.add_argument("--preferences", default="", help="of the answers, as samples.csv has them")
    parser.add_argument("--rows", type=int, default=4)
    args = parser.parse_args()
    front = json.loads((args.directory / "front.json").read_text())
    names = [objective["name"] for objective in front["objectives"]]
    print(points(front, names))
    print(figures(front))
    if args.preferences:
        preferences = [rounded(map(float, mu.split(","))) for mu in args.preferences.split(";")]
        print(answers(args.directory, names, args.method, preferences, args.rows))


if __name__ == "__main__":
    main()
