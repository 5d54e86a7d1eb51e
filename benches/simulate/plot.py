"""Draws benches/results/simulate.csv: output tokens/s and time to first token over the rate.

usage: plot.py [--csv benches/results/simulate.csv] [--out docs/images]      (needs matplotlib)
"""

import argparse
import collections
import csv
import pathlib

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.fonttype"] = "none"
matplotlib.rcParams["svg.hashsalt"] = "ladle"
from matplotlib import pyplot  # noqa: E402

PANELS = {
    ("h200", "1", "7b-lora"): "7B, 3 LoRA of rank 64, one H200",
    ("h200", "1", "7b-full"): "7B, 3 full checkpoints, one H200",
    ("8x-h200", "1", "70b-lora"): "70B, 3 LoRA of rank 64, 8 H200 (TP)",
    ("8x-h200", "1", "70b-full"): "70B, 3 full checkpoints, 8 H200 (TP)",
}
POLICIES = {
    "auto": ("ladle", "#1f5fbf"),
    "fused": ("ladle, all merged", "#7fb0e8"),
    "one-adapter": ("one adapter a row", "#d4683b"),
    "one-mix": ("one mix a batch", "#8a5bc7"),
    "plugin": ("vLLM, resolver", "#3a9d6e"),
}
PREFERENCES = {"zipf(1) of 100": "--", "uniform": "-"}
# Column, scale, label, and the largest share of refused requests that is drawn: beyond it a time to
# first token says only how long the queue is.
PLOTS = {
    "scale-throughput": ("tokens_per_s", 1.0, "generated tokens/s", 1.0),
    "scale-first-token": ("first_token_ms_p99", 1e-3, "p99 time to first token, s", 0.01),
}


def series(path):
    """(panel, policy, preferences) -> rows in order of the rate."""
    found = collections.defaultdict(list)
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            panel = (row["machine"], row["replicas"], row["soup"])
            found[panel, row["policy"], row["preferences"]].append(row)
    return found


def draw(found, column, scale, label, most_refused, path):
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6.4), sharex=True, constrained_layout=True)
    for axis, (panel, title) in zip(axes.flat, PANELS.items()):
        for policy, (name, color) in POLICIES.items():
            for preferences, style in PREFERENCES.items():
                rows = found.get((panel, policy, preferences), [])
                rows = [row for row in rows if float(row["refused"]) <= most_refused]
                points = [(float(row["rate"]), float(row[column]) * scale) for row in rows]
                points = [(x, y) for x, y in points if y > 0]
                if points:
                    axis.plot(*zip(*points), style, color=color, marker="o", markersize=3, linewidth=1.6)
        axis.set(xscale="log", yscale="log", title=title)
        axis.title.set_fontsize(10)
        axis.grid(color="#ddd", linewidth=0.6)
    figure.supxlabel("requests/s offered", fontsize=10)
    figure.supylabel(label, fontsize=10)
    lines = [pyplot.Line2D([], [], color=color, label=name) for name, color in POLICIES.values()]
    lines += [pyplot.Line2D([], [], color="#555", linestyle=style, label=name) for name, style in PREFERENCES.items()]
    figure.legend(handles=lines, loc="outside upper center", ncols=6, frameon=False, fontsize=9)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", default="benches/results/simulate.csv")
    parser.add_argument("--out", default="docs/images", type=pathlib.Path)
    args = parser.parse_args()
    found = series(args.csv)
    for name, plot in PLOTS.items():
        draw(found, *plot, args.out / f"{name}.svg")


if __name__ == "__main__":
    main()
