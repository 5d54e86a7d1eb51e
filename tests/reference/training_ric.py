"""Rewards in context by numpy, for training/src/ric/goals.rs: preferences as wanted rewards, goals
near the front, and the filter of responses.

    python tests/reference/training_ric.py > tests/fixtures/training/ric.json

Written from the paper's definitions (Yang et al. 2024); the authors' code fixes what it leaves open:
one decimal, the 0.7 quantile, one objective alone below its highest value in a goal.
"""

import json

import numpy

SEED = 20261129


def wanted(mapping, mu, low, high):
    n = len(mu)
    if mapping == "l2":
        share = mu / numpy.linalg.norm(mu)
    elif mapping == "linear":
        share = mu
    else:
        share = numpy.minimum(n * mu, 1.0)
        share[numpy.argmax(mu)] = 1.0
    return numpy.round(low + share * (high - low), 1)


def goal(uniforms, low, high):
    rewards = high.copy()
    at = numpy.argmin(uniforms)
    rewards[at] = low[at] + uniforms[at] * (high[at] - low[at])
    return numpy.round(rewards, 1)


def main():
    generator = numpy.random.default_rng(SEED)
    mappings, goals, filters = [], [], []
    for n in (2, 3, 4):
        for _ in range(4):
            low, high = generator.uniform(-4, -0.5, n), generator.uniform(0.5, 4, n)
            corner = numpy.eye(n)[generator.integers(n)]
            for mu in (generator.dirichlet(numpy.ones(n)), corner, numpy.full(n, 1 / n)):
                case = {"low": low.tolist(), "high": high.tolist(), "preference": mu.tolist()}
                for mapping in ("l2", "linf", "linear"):
                    case[mapping] = wanted(mapping, mu.copy(), low, high).tolist()
                mappings.append(case)
            uniforms = generator.random(n)
            goals.append(
                {
                    "low": low.tolist(),
                    "high": high.tolist(),
                    "uniforms": uniforms.tolist(),
                    "goal": goal(uniforms, low, high).tolist(),
                }
            )
    for n, count, q in ((2, 1, 0.7), (2, 10, 0.7), (3, 37, 0.7), (2, 24, 0.0), (4, 50, 0.95)):
        rewards = numpy.round(generator.normal(size=(count, n)), 2)
        thresholds = numpy.quantile(rewards, q, axis=0)
        kept = (rewards >= thresholds).any(axis=1)
        filters.append({"rewards": rewards.tolist(), "quantile": q, "kept": kept.tolist()})
    told = [[0.04, -0.04], [1.25, -3.0], [-0.35, 12.0, 0.0]]
    words = [" ".join(f"<rm{i}_score> {numpy.round(r, 1) + 0.0}" for i, r in enumerate(row, 1)) for row in told]
    print(
        json.dumps(
            {
                "versions": {"numpy": numpy.__version__},
                "seed": SEED,
                "mappings": mappings,
                "goals": goals,
                "filters": filters,
                "words": [{"rewards": row, "words": text} for row, text in zip(told, words)],
            }
        )
    )


if __name__ == "__main__":
    main()
