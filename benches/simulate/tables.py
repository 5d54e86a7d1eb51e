"""Prints the tables of docs/scale.md from the simulation's results.

usage: tables.py [--csv benches/results/simulate.csv]
"""

import argparse
import csv

SOUPS = {
    ("h200", "1", "7b-lora"): "7B LoRA, one H200",
    ("h200", "8", "7b-lora"): "7B LoRA, eight H200",
    ("h200", "1", "7b-full"): "7B full, one H200",
    ("8x-h200", "1", "70b-lora"): "70B LoRA, eight H200",
    ("8x-h200", "1", "70b-full"): "70B full, eight H200",
}
POLICIES = ["auto", "fused", "one-adapter", "one-mix", "plugin"]
HEAD = "| soup | preferences | ladle | all merged | one adapter a row | one mix a batch | vLLM, resolver |\n" + "|---" * 7 + "|"


def number(text, digits):
    """Rounded to so many digits, thousands apart."""
    value = float(text)
    places = digits - len(str(int(value)))
    return f"{round(value, places):,.{max(places, 0)}f}" if value else "0"


def latency(row):
    keys = ["first_token_ms_p50", "first_token_ms_p99", "gap_ms_p50", "gap_ms_p99"]
    first, second, gap, worst = (number(row[key], 3 if float(row[key]) >= 100 else 2) for key in keys)
    return f"{first} / {second}; {gap} / {worst}"


def table(rows, rate, cell, kinds):
    print(HEAD)
    for soup, name in SOUPS.items():
        for kind in kinds:
            found = [rows.get((*soup, policy, kind, rate)) for policy in POLICIES]
            if any(found):
                print(f"| {name} | {kind} |", " | ".join(cell(row) if row else "–" for row in found), "|")
    print()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", default="benches/results/simulate.csv")
    with open(parser.parse_args().csv) as file:
        keys = ["machine", "replicas", "soup", "policy", "preferences", "rate"]
        rows = {tuple(row[key] for key in keys): row for row in csv.DictReader(file)}
    kinds = ["shared", "zipf(1) of 100", "zipf(1) of 10000", "uniform"]
    table(rows, "10000", lambda row: number(row["tokens_per_s"], 3), kinds)
    table(rows, "10", latency, ["shared", "zipf(1) of 100", "uniform"])


if __name__ == "__main__":
    main()
