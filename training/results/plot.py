"""Draws a run's rewards over its steps, one panel an objective, one line a backbone.

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
    panels = [(key, key.removeprefix("reward/") + ", mean reward") for key in sorted(objectives)]
    panels.append(("kl", "KL to θ_sft, nats a response"))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(3.1 * len(panels), 2.7), layout="constrained")
    for axis, (key, title) in zip(axes, panels):
        for marker, (name, rows) in zip(MARKERS, curves.items()):
            axis.plot([r["step"] for r in rows], [r[key] for r in rows], marker=marker, markersize=3, label=name)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[0].legend(title="backbone", fontsize=8, title_fontsize=8)
    figure.savefig(folder / "curves.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
