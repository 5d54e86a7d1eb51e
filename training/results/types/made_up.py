"""Made-up rows of four types of task, for scripts/paper-table --plan types.

    python training/results/types/made_up.py DIR      writes DIR/{sums,kinds,order,describe}-{train,dev,test}.jsonl

Deterministic: the same rows at every call. Standard library only.
"""

import itertools
import json
import pathlib
import random
import sys

KINDS = {
    "animal": "ant bear cat cow deer dog fox frog goat horse lion mouse owl pig rat sheep snake whale".split(),
    "fruit": "apple banana cherry date fig grape kiwi lemon lime mango melon orange peach pear plum quince".split(),
    "tool": "axe broom chisel drill file fork hammer knife ladder needle pliers rake ruler saw shovel spoon".split(),
}
# The lightest first.
BY_WEIGHT = ["ant", "mouse", "rat", "cat", "dog", "sheep", "pig", "cow", "horse", "elephant", "whale"]
# Rows of dev and of test; the others, and so many at most, are for training.
HELD_OUT, TRAIN = 32, 240


def sums():
    for a, b in itertools.product(range(1, 18), repeat=2):
        yield {"question": f"What is {a} plus {b}? Answer with the number alone.", "answer": str(a + b), "label": str(a + b)}


def kinds():
    for kind, names in KINDS.items():
        for name in names:
            for asked in ("Is {} an animal, a fruit or a tool?", "Animal, fruit or tool: what is {}?", "Name the kind of {}: animal, fruit or tool."):
                question = asked.format(f"a {name}") + " Answer with one word."
                yield {"question": question, "answer": kind, "label": kind}


def order():
    for chosen in itertools.permutations(BY_WEIGHT, 3):
        heaviest = sorted(chosen, key=BY_WEIGHT.index, reverse=True)
        question = f"Order these animals by weight, the heaviest first: {', '.join(chosen)}."
        relevance = [2 - heaviest.index(name) for name in chosen]
        yield {"question": question, "answer": ", ".join(heaviest), "items": list(chosen), "relevance": relevance}


def describe():
    for kind, names in KINDS.items():
        for name in names:
            for asked in ("Describe a {}.", "What is a {}?", "Tell me about a {}.", "Explain what a {} is."):
                answer = f"A {name} is a kind of {kind} that most people have seen, at home or in a book, and can name."
                yield {"question": asked.format(name), "answer": answer}


def files(few=False):
    """The rows by file name."""
    found = {}
    for index, make in enumerate((sums, kinds, order, describe)):
        rows = list(make())
        random.Random(index).shuffle(rows)
        parts = {"test": rows[:HELD_OUT], "dev": rows[HELD_OUT : 2 * HELD_OUT], "train": rows[2 * HELD_OUT :][:TRAIN]}
        for part, chosen in parts.items():
            chosen = chosen[: 4 if part == "test" else 16] if few else chosen
            found[f"{make.__name__}-{part}.jsonl"] = "".join(json.dumps(row) + "\n" for row in chosen)
    return found


if __name__ == "__main__":
    for name, text in files().items():
        (pathlib.Path(sys.argv[1]) / name).write_text(text)
