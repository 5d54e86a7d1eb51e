"""Quadratic surrogates of made-up fronts by numpy, and what is best within bounds by exhaustion, for
tests/front.rs.

    python tests/reference/make_front.py > tests/fixtures/front-reference.json

Each surrogate is refitted without each point in turn for its error, and a target is maximised over every point
of a fine lattice: the slow ways, which the shipped code does not take.
"""

import itertools
import json

import numpy

OBJECTIVES = ["helpful", "harmless", "brief"]
# B of the soup that is measured: its diagonal, as in tests/fixtures/soup-tiny.
BETA = 0.7


def terms(mu):
    return numpy.array([*mu, *(mu[i] * mu[k] for i, k in itertools.combinations(range(len(mu)), 2))])


def lattice(n, steps):
    for cut in itertools.combinations(range(steps + n - 1), n - 1):
        ends = [-1, *cut, steps + n - 1]
        yield numpy.array([b - a - 1 for a, b in zip(ends, ends[1:])]) / steps


def surrogate(design, means):
    fit = lambda x, y: numpy.linalg.lstsq(x, y, rcond=None)[0]
    left_out = [means[i] - design[i] @ fit(numpy.delete(design, i, 0), numpy.delete(means, i, 0)) for i in range(len(means))]
    return fit(design, means), numpy.sqrt(numpy.mean(numpy.square(left_out), axis=0))


def between(design, sweeps, mu, alpha):
    """Linear in α between two of the sweeps (α, means); the error grows by what a monotone quadratic may be off."""
    (low, first), (high, second) = sweeps
    w = (alpha - low) / (high - low)
    (a, a_error), (b, b_error) = surrogate(design, first), surrogate(design, second)
    a, b = terms(mu) @ a, terms(mu) @ b
    value, error = a + w * (b - a), 2 * (a_error + w * (b_error - a_error)) + w * (1 - w) * numpy.abs(b - a)
    return {"alpha": alpha, "preference": mu.tolist(), "value": value.tolist(), "low": (value - error).tolist(),
            "high": (value + error).tolist()}


def case(rng, n, steps, noise, targets):
    names = OBJECTIVES[:n]
    grid = list(lattice(n, steps))
    design = numpy.array([terms(mu) for mu in grid])
    truth = rng.normal(size=(n, design.shape[1]))
    # Each objective gains by its own weight.
    truth[numpy.arange(n), numpy.arange(n)] += 2
    means = design @ truth.T + noise * rng.normal(size=(len(grid), n))
    coefficients, errors = surrogate(design, means)
    predictions = []
    for _ in range(5):
        mu = rng.dirichlet(numpy.ones(n))
        value = terms(mu) @ coefficients
        predictions.append({"preference": mu.tolist(), "value": value.tolist(), "low": (value - 2 * errors).tolist(),
                            "high": (value + 2 * errors).tolist()})
    fine = numpy.array(list(lattice(n, {2: 20000, 3: 1000}[n])))
    values = numpy.array([terms(mu) for mu in fine]) @ coefficients
    solved = []
    for which, quantile, maximise in targets:
        # A bound that leaves part of the simplex.
        bound = float(numpy.quantile(values[:, which], quantile))
        best = values[values[:, which] >= bound][:, maximise].max()
        solved.append({"target": {names[which]: {"min": bound}}, "maximise": names[maximise], "best": float(best)})
    matrix = numpy.full((n, n), (1 - BETA) / (n - 1)) + numpy.eye(n) * (BETA - (1 - BETA) / (n - 1))
    method = lambda alpha, means: {
        "method": "bone soup (nominal)", "kind": "bone", "run": 0, "alpha": alpha,
        "points": [{"preference": mu.tolist(), "lambda": numpy.linalg.solve(matrix, mu).tolist(), "mean": mean.tolist()}
                   for mu, mean in zip(grid, means)]}
    # A second sweep, from a generator of its own.
    own = numpy.random.default_rng(n * 100 + len(targets))
    further = means + own.normal(size=means.shape)
    sweeps = [(0.0, means), (1.0, further)]
    predictions += [between(design, sweeps, own.dirichlet(numpy.ones(n)), alpha) for alpha in (0.25, 0.5, 1.0)]
    front = {"format": 2, "objectives": [{"name": name, "unit": "points"} for name in names],
             "sha256": {"made-up.safetensors": "0" * 64}, "methods": [method(*sweep) for sweep in reversed(sweeps)]}
    extremes = {"largest": values.max(axis=0).tolist(), "smallest": values.min(axis=0).tolist()}
    return {"front": front, "predictions": predictions, "targets": solved, **extremes}


def main():
    rng = numpy.random.default_rng(11)
    cases = [
        case(rng, 2, 10, 0.05, [(0, 0.5, 1), (1, 0.8, 0), (0, 0.95, 0)]),
        case(rng, 3, 4, 0.05, [(0, 0.5, 1), (1, 0.8, 2), (2, 0.9, 0)]),
        case(rng, 3, 4, 0.0, [(2, 0.3, 2), (1, 0.7, 0)]),
    ]
    print(json.dumps({"made by": f"make_front.py, numpy {numpy.__version__}, seed 11", "cases": cases}))


if __name__ == "__main__":
    main()
