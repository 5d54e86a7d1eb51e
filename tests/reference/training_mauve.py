"""MAUVE by mauve-text for training/src/measure/mauve.rs: histograms, curve and scores of given
features.

    python tests/reference/training_mauve.py > tests/fixtures/training/mauve.json

Needs mauve-text and faiss-cpu. Features are few and rounded to three decimals, so that the file is
small. With a hundred starts k-means of three seeds finds one partition, or the script stops.
"""

import json
from importlib.metadata import version

import mauve
import numpy
from mauve.compute_mauve import get_divergence_curve_for_multinomials, get_fronter_integral

SEED = 20261129


def blobs(generator, centres, shares, count, spread):
    which = generator.choice(len(centres), size=count, p=shares)
    points = centres[which] + generator.normal(scale=spread, size=(count, centres.shape[1]))
    return numpy.round(points, 3)


def main():
    generator = numpy.random.default_rng(SEED)
    curves = []
    for size in (2, 5, 12):
        for empty in (0, 1):
            p, q = generator.dirichlet(numpy.ones(size)), generator.dirichlet(numpy.ones(size))
            if empty:
                p[0], q[-1] = 0.0, 0.0
                p, q = p / p.sum(), q / q.sum()
            weights = numpy.linspace(1e-6, 1 - 1e-6, 25)
            curve = get_divergence_curve_for_multinomials(p, q, weights, 5)
            x, y = curve.T
            area = lambda a, b: numpy.trapezoid(b[numpy.argsort(a)], a[numpy.argsort(a)])
            curves.append(
                {
                    "p": p.tolist(),
                    "q": q.tolist(),
                    "curve": curve.tolist(),
                    "mauve": float(0.5 * (area(x, y) + area(y, x))),
                    "frontier_integral": float(get_fronter_integral(p, q)),
                }
            )
    features = []
    for buckets, dimension, spread, shares in (
        (4, 6, 0.05, ([0.25] * 4, [0.25] * 4)),
        (4, 6, 0.05, ([0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7])),
        (5, 8, 0.1, ([0.5, 0.5, 0, 0, 0], [0, 0, 0.3, 0.3, 0.4])),
        (6, 8, 0.1, ([0.3, 0.2, 0.2, 0.1, 0.1, 0.1], [0.2, 0.3, 0.1, 0.2, 0.1, 0.1])),
    ):
        centres = generator.normal(scale=2, size=(buckets, dimension))
        p = blobs(generator, centres, shares[0], 60, spread)
        q = blobs(generator, centres, shares[1], 50, spread)
        features.append((buckets, p, q))
    centres = generator.normal(scale=2, size=(3, 4))
    p = blobs(generator, centres, [0.6, 0.2, 0.2], 30, 0.1)
    q = blobs(generator, centres, [0.3, 0.4, 0.3], 34, 0.1)
    cases = []
    for buckets, p, q in features + [("auto", p, q)]:
        out = [
            mauve.compute_mauve(
                p_features=p, q_features=q, num_buckets=buckets, kmeans_num_redo=100, seed=seed, verbose=False
            )
            for seed in (25, 26, 27)
        ]
        assert max(abs(o.mauve - out[0].mauve) for o in out) < 1e-6, [o.mauve for o in out]
        cases.append(
            {
                "buckets": None if buckets == "auto" else buckets,
                "p": p.tolist(),
                "q": q.tolist(),
                "num_buckets": out[0].num_buckets,
                "mauve": float(out[0].mauve),
                "mauve_star": float(out[0].mauve_star),
                "frontier_integral": float(out[0].frontier_integral),
                "p_histogram": sorted(out[0].p_hist.tolist()),
            }
        )
    versions = {name: version(name) for name in ("mauve-text", "faiss-cpu", "scikit-learn", "numpy")}
    print(json.dumps({"versions": versions, "seed": SEED, "curves": curves, "features": cases}))


if __name__ == "__main__":
    main()
