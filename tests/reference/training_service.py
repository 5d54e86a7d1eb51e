"""Reference values for training/src/service: raw, standardised and mixed rewards of six training steps under
DRBO inverse (every 2), each step in two parts, by NumPy in f64.

    python tests/reference/training_service.py > tests/fixtures/training/service.json

The objectives are those of training/tests/runs/reward_service.rs. UNIFORMS are the trainer's draws of the
objective that a step counts (seed 12), which the test compares with its own.
"""

import json
import platform

import numpy

SEED = 20261129
UNIFORMS = [
    0.5773736173859925,
    0.3979826688228405,
    0.8756411517155799,
    0.6934553308111896,
    0.9840616829452417,
    0.6496775437297406,
]
MEAN, STD = numpy.array([0.55, 0.4, 0.35]), numpy.array([0.25, 0.49, 0.3])
COLUMN, OWN, EVERY, SHIFT, FLOOR = numpy.array([0.6, 0.2, 0.2]), 0, 2, 1.0, 1e-3
WORDS = "river stone cloud amber violet north seven lantern quick soup".split()


def raw(row):
    words = row["response"].split()
    brevity = 1 - numpy.clip((len(words) - 2) / 8, 0, 1) if words and row["finished"] else 0.0
    pattern = float("ou" in row["response"])
    found = [reference in words for reference in row["references"]]
    return [float(brevity), pattern, float(numpy.mean(found))]


def dominant(weights, column, own, lead):
    """The nearest point on the way to the column where the own weight leads by `lead`."""
    moved = 0.0
    for j in range(len(weights)):
        now, goal = weights[own] - weights[j], column[own] - column[j]
        if j != own and now < lead:
            moved = max(moved, min(1.0, (lead - now) / (goal - now)))
    mixed = weights + moved * (column - weights)
    return mixed / mixed.sum()


def main():
    rng = numpy.random.default_rng(SEED)
    n = len(COLUMN)
    preset = n * COLUMN
    lead = (COLUMN[OWN] - numpy.delete(COLUMN, OWN).max()) / 2
    weights, counts, means, used, steps = COLUMN.copy(), numpy.ones(n), [], [], []
    for t, uniform in enumerate(UNIFORMS, start=1):
        parts = []
        for part in ("rank 0", "rank 1"):
            rows = []
            for i in range(4):
                words = rng.choice(WORDS, size=rng.integers(1, 12)).tolist()
                references = rng.choice(WORDS, size=2, replace=False).tolist()
                finished = bool(rng.random() < 0.8)
                row = {"prompt": f"Say {i}.", "response": " ".join(words), "finished": finished}
                rows.append({**row, "references": references})
            scores = numpy.array([raw(row) for row in rows])
            standardised = (scores - MEAN) / STD
            parts.append({
                "part": part,
                "rows": rows,
                "raw": scores.tolist(),
                "standardised": standardised.tolist(),
                "reward": (standardised @ weights).tolist(),
            })
        steps.append({"parts": parts, "weights": weights.tolist()})
        used.append(weights)
        batch = numpy.concatenate([numpy.array(part["raw"]) for part in parts])
        means.append((batch.mean(axis=0) - MEAN) / STD)
        counts[min(numpy.searchsorted(numpy.cumsum(weights), uniform, side="right"), n - 1)] += 1
        if t % EVERY == 0:
            x = numpy.mean(means, axis=0) + 1 + numpy.sqrt(2 * numpy.log(t) / counts)
            z = preset / numpy.maximum(x - SHIFT * min(0.0, x.min()), FLOOR)
            weights = dominant(z / z.sum(), COLUMN, OWN, lead)
    print(json.dumps({
        "versions": {"python": platform.python_version(), "numpy": numpy.__version__},
        "uniforms": UNIFORMS,
        "mean": MEAN.tolist(),
        "std": STD.tolist(),
        "steps": steps,
        "realised": numpy.mean(used, axis=0).tolist(),
        "weights": weights.tolist(),
    }, indent=1))


main()
