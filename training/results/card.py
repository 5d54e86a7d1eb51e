"""Tables of a soup's card, from the front.json of an evaluation.

    python training/results/card.py DIR [--baseline "rewarded soup"]
        [--method NAME --preferences "1,0,0;0.5,0.5,0" --rows 4]

DIR holds front.json and samples.csv or samples.csv.gz. A row for each method and preference, raw rewards
as they are, † where θ_sft is better in all of them; a row of figures for each method in σ; differences to
a baseline with their intervals; the answers of one method to the first rows. Standard library only.
"""

import argparse
import csv
import gzip
import json
import pathlib
import random
import statistics

# Of a bootstrap over rows.
DRAWS = 10_000
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


def read_samples(directory):
    packed = directory / "samples.csv.gz"
    with gzip.open(packed, "rt", newline="") if packed.exists() else open(directory / "samples.csv", newline="") as file:
        return list(csv.DictReader(file))


def key(sample, names):
    return rounded(float(sample[f"mu:{name}"]) for name in names)


def differences(samples, front, names, baseline):
    """Testing reward of each method minus the baseline's, by region: mean and 95 % interval over rows."""
    scale = [(objective["name"], objective["mean"], objective["std"]) for objective in front["objectives"]]
    testing = {}
    for sample in samples:
        mu = key(sample, names)
        testing[sample["method"], mu, sample["row"]] = sum(
            weight * (float(sample[f"reward:{name}"]) - mean) / std for weight, (name, mean, std) in zip(mu, scale)
        )
    rows = sorted({row for _, _, row in testing})
    preferences = sorted({mu for _, mu, _ in testing})
    regions = {
        "inside": [mu for mu in preferences if min(mu) > 0.001],
        "edges": [mu for mu in preferences if min(mu) <= 0.001 and max(mu) < 0.999],
        "corners": [mu for mu in preferences if max(mu) >= 0.999],
    }
    draw, lines = random.Random(1), []
    for method in dict.fromkeys(sample["method"] for sample in samples):
        line = [method]
        for region in regions.values():
            each = [statistics.fmean(testing[method, mu, row] - testing[baseline, mu, row] for mu in region) for row in rows]
            means = sorted(statistics.fmean(draw.choices(each, k=len(each))) for _ in range(DRAWS))
            low, high = means[DRAWS // 40], means[DRAWS - 1 - DRAWS // 40]
            line.append(f"{statistics.fmean(each):+.2f} ({low:+.2f} to {high:+.2f})")
        lines.append(line)
    return table([f"minus {baseline}", *regions], lines)


def answers(samples, names, method, preferences, count):
    rows = list(dict.fromkeys(sample["row"] for sample in samples))[:count]
    found = {(key(s, names), s["row"]): s["response"].strip() for s in samples if s["method"] == method}
    line = lambda row: [f"`{row}`", *[found[preference, row].replace("|", "\\|") for preference in preferences]]
    return table(["row", *map(share, preferences)], map(line, rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--method", default="bone soup (clamped)")
    parser.add_argument("--baseline", help="method that the others are compared with, row by row")
    parser.add_argument("--preferences", default="", help="of the answers, as samples.csv has them")
    parser.add_argument("--rows", type=int, default=4)
    args = parser.parse_args()
    front = json.loads((args.directory / "front.json").read_text())
    names = [objective["name"] for objective in front["objectives"]]
    print(points(front, names))
    print(figures(front))
    samples = read_samples(args.directory)
    if args.baseline:
        print(differences(samples, front, names, args.baseline))
    if args.preferences:
        preferences = [rounded(map(float, mu.split(","))) for mu in args.preferences.split(";")]
        print(answers(samples, names, args.method, preferences, args.rows))


if __name__ == "__main__":
    main()
