"""Fits the figures of a CPU in config.toml to the passes that the decode bench measured.

usage: fit.py DECODE.json      (what `cargo bench --workspace --bench decode` printed: SmolLM2-135M's shape)

The formula is `Machine::pass`: launches + max(bytes / bandwidth, operations / peak) + row · rows.
Prints the figures of the least squared log-ratios, and prediction over measurement of each pass.
"""

import itertools
import json
import math
import sys

LAYERS, HIDDEN, INNER, KEYS = 30, 576, 1536, 192
BODY = LAYERS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * KEYS + 3 * HIDDEN * INNER)
HEAD = 49152 * HIDDEN
# Three adapters of rank 16 on every linear layer.
ADAPTERS = 3 * 16 * LAYERS * (4 * HIDDEN + 2 * (HIDDEN + KEYS) + 3 * (HIDDEN + INNER))
KERNELS = {"merged": 10 * LAYERS, "mixed": 24 * LAYERS}
# Keys of a decoding row: a prompt of 128 and half of 24 steps.
CACHED = 140


def work(run):
    """Bytes, operations, launches and rows of a measured pass."""
    rows, extra = run["rows"], ADAPTERS if run["mode"] == "mixed" else 0
    prefill = run["what"] == "prefill"
    keys = rows if prefill else rows * CACHED
    attended = rows * rows / 2 if prefill else rows * CACHED
    size = 2 * (BODY + HEAD + extra) + 2 * 2 * LAYERS * KEYS * keys
    flops = 2 * (BODY + extra) * rows + 2 * HEAD * (1 if prefill else rows) + 4 * LAYERS * HIDDEN * attended
    return size, flops, KERNELS[run["mode"]], rows


def predict(figures, shape):
    bandwidth, peak, launch, row = figures
    size, flops, kernels, rows = shape
    return kernels * launch + max(size / bandwidth, flops / peak) + row * rows


def error(figures, points):
    return sum(math.log(predict(figures, shape) / seconds) ** 2 for shape, seconds in points)


def fit(points):
    """The best of pattern searches in the logarithms from several starts."""
    starts = itertools.product((10e9, 20e9, 40e9), (100e9, 300e9, 1e12), (2e-6, 20e-6), (0.1e-3, 1e-3))
    return min((search(list(start), points) for start in starts), key=lambda figures: error(figures, points))


def search(figures, points):
    step = 2.0
    best = error(figures, points)
    while step > 1.0005:
        moved = False
        for index in range(len(figures)):
            for factor in (step, 1 / step):
                trial = figures.copy()
                trial[index] *= factor
                if error(trial, points) < best:
                    figures, best, moved = trial, error(trial, points), True
        step = step if moved else math.sqrt(step)
    return figures


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        runs = [run for run in json.load(file)["runs"] if run["dtype"] == "bf16"]
    points = [(work(run), run["ms"] / 1e3) for run in runs]
    figures = fit(points)
    print("bandwidth = {:.3g}\npeak = {:.3g}\nlaunch = {:.3g}\nrow = {:.3g}".format(*figures))
    for run, (shape, seconds) in zip(runs, points):
        print(run["mode"], run["what"], run["rows"], f"{predict(figures, shape) / seconds:.2f}")


if __name__ == "__main__":
    main()
