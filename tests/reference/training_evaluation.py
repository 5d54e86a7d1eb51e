"""What an evaluation derives from rewards, by numpy and by brute force, for training/src/measure and
src/preference/solve.rs.

    python tests/reference/training_evaluation.py > tests/fixtures/training/evaluation.json
"""

import itertools
import json
from fractions import Fraction

import numpy

SEED = 20261128


def nearest_on_simplex(v):
    """The projection by trying every set of positive entries and keeping the nearest feasible point."""
    best = None
    for size in range(1, len(v) + 1):
        for support in itertools.combinations(range(len(v)), size):
            shift = (sum(v[i] for i in support) - 1) / size
            x = numpy.zeros(len(v))
            x[list(support)] = [v[i] - shift for i in support]
            if x.min() >= 0 and (best is None or numpy.sum((x - v) ** 2) < best[0]):
                best = (numpy.sum((x - v) ** 2), x)
    return best[1]


def r_squared(inputs, outcomes):
    x = numpy.column_stack([inputs, numpy.ones(len(inputs))])
    coefficients, *_ = numpy.linalg.lstsq(x, outcomes, rcond=None)
    residuals = ((outcomes - x @ coefficients) ** 2).sum()
    return float(1 - residuals / ((outcomes - outcomes.mean(0)) ** 2).sum())


def grid(n, steps):
    if n == 1:
        return [[steps]]
    return [[k] + rest for k in range(steps, -1, -1) for rest in grid_rest(n - 1, steps - k)]


def grid_rest(n, left):
    return [[left]] if n == 1 else [[k] + rest for k in range(left, -1, -1) for rest in grid_rest(n - 1, left - k)]


def ceiling(n, steps):
    """Controllability of rewards that follow every weight but never tie."""
    points = [[Fraction(k, steps) for k in p] for p in grid(n, steps)]
    pairs = [(a, b) for a in points for b in points if a is not b]
    return float(Fraction(sum(all(x != y for x, y in zip(a, b, strict=True)) for a, b in pairs), len(pairs)))


def main():
    generator = numpy.random.default_rng(SEED)
    vectors = [generator.normal(1 / n, s, n) for n in (2, 3, 4, 5) for s in (0.1, 0.5, 2.0)]
    vectors += [numpy.array(v) for v in ([2.0, -0.5, -0.5], [3.0, -2.0], [0.25] * 4, [-7.0, -7.0])]
    regressions = []
    for n, rows, noise in ((2, 7, 0.0), (3, 15, 0.3), (3, 66, 1.0)):
        inputs = generator.dirichlet(numpy.ones(n), rows) * 1.5 - 0.5 / n
        outcomes = inputs @ generator.normal(size=(n, n)) + noise * generator.normal(size=(rows, n))
        regressions.append(
            {"inputs": inputs.tolist(), "outcomes": outcomes.tolist(), "r_squared": r_squared(inputs, outcomes)}
        )
    differences = generator.normal(0.2, 1.0, (3, 20)) + generator.normal(0, 0.3, (3, 1))
    rows = generator.integers(0, 3, (200, 3))
    columns = generator.integers(0, 20, (200, 20))
    means = [float(differences[numpy.ix_(r, c)].mean()) for r, c in zip(rows, columns, strict=True)]
    many = [
        differences[numpy.ix_(generator.integers(0, 3, 3), generator.integers(0, 20, 20))].mean() for _ in range(40000)
    ]
    print(
        json.dumps(
            {
                "versions": {"numpy": numpy.__version__},
                "seed": SEED,
                "simplex": [{"v": v.tolist(), "nearest": nearest_on_simplex(v).tolist()} for v in vectors],
                "r_squared": regressions,
                "ceilings": [[n, s, ceiling(n, s)] for n, s in ((2, 10), (3, 4), (3, 10), (4, 5))],
                "bootstrap": {
                    "differences": differences.tolist(),
                    "rows": rows.tolist(),
                    "columns": columns.tolist(),
                    "means": means,
                    "percentiles": [float(numpy.percentile(means, 100 * q)) for q in (0.025, 0.5, 0.975)],
                    "interval": [float(x) for x in numpy.percentile(many, (2.5, 97.5))],
                },
            }
        )
    )


if __name__ == "__main__":
    main()
