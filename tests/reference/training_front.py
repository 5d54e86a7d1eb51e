"""Hypervolumes by pymoo for training/src/measure/front.rs.

    python tests/reference/training_front.py > tests/fixtures/training/front.json

pymoo minimises: points and reference are negated for it.
"""

import json

import numpy
import pymoo
from pymoo.indicators.hv import HV

SEED = 20261121


def main():
    generator = numpy.random.default_rng(SEED)
    cases = []
    for n, count in ((2, 11), (2, 40), (3, 12), (3, 66), (4, 15), (5, 12), (6, 9)):
        points = numpy.round(generator.uniform(-1, 2, (count, n)), 6)
        reference = numpy.round(generator.uniform(-1.2, -0.2, n), 6)
        cases.append(
            {
                "points": points.tolist(),
                "reference": reference.tolist(),
                "hypervolume": float(HV(ref_point=-reference)(-points)),
            }
        )
    print(json.dumps({"versions": {"pymoo": pymoo.__version__, "numpy": numpy.__version__}, "seed": SEED, "cases": cases}))


if __name__ == "__main__":
    main()
