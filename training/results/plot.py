"""Draws a run's rewards over its steps, with the weights and the KL, one line a backbone.

    python training/results/plot.py training/results/NAME

reads NAME/curves/BACKBONE.jsonl (a run's metrics/BACKBONE/metrics.jsonl) and writes NAME/curves.svg.
"""

import json
import pathlib
import sys

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.hashsalt": "ladle", "svg.fonttype": "none", "font.size": 9})
from matplotlib import pyplot  # noqa: E402

MARKERS = "os^D"


def main():
    folder = pathlib.Path(sys.argv[1])
    curves = {}
    for path in sorted((folder / "curves").glob("*.jsonl")):
        if path.stem != "sft":
            curves[path.stem] = [json.loads(line) for line in path.read_text().splitlines()]
    objectives = [key for key in next(iter(curves.values()))[0] if key.startswith("reward/")]
    panels = [(key.removeprefix("reward/") + ", mean reward", lambda _, row, key=key: row[key]) for key in sorted(objectives)]
    weights = [[row[f"weight/{name}"] for row in rows] for name, rows in curves.items()]
    if any(max(own) - min(own) > 1e-6 for own in weights):
        panels.append(("weight of the backbone's own reward", lambda name, row: row[f"weight/{name}"]))
    panels.append(("KL to θ_sft, nats a response", lambda _, row: row["kl"]))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(3.1 * len(panels), 3.0), layout="constrained")
    for axis, (title, value) in zip(axes, panels):
        for marker, (name, rows) in zip(MARKERS, curves.items()):
            steps, values = [row["step"] for row in rows], [value(name, row) for row in rows]
            axis.plot(steps, values, marker=marker, markersize=3, label=name)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    lines, names = axes[0].get_legend_handles_labels()
    figure.legend(lines, [f"backbone {name}" for name in names], loc="outside upper center", ncols=len(names), fontsize=8)
    figure.savefig(folder / "curves.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
