"""Compares simulated clients in a closed loop with measured ones.

usage: compare.py SERVE.json [--simulated benches/results/simulate.json] [--out FILE]

SERVE.json is what benches/peers/serve.py wrote. Prints a table and writes the same as JSON.
"""

import argparse
import json
import pathlib

# Case of the serving bench -> policy, preferences.
CASES = {
    "ladle/shared": ("auto", "shared"),
    "ladle/distinct": ("auto", "distinct"),
    "ladle/distinct-mixed": ("mixed", "distinct"),
}


# More of the machine than this taken by others spoils a run.
MOST_TAKEN = 0.2


def pair(predicted, measured):
    return {"predicted": round(predicted, 1), "measured": measured, "ratio": round(predicted / measured, 2)}


def compare(simulated, served):
    rows = []
    for run in served["runs"]:
        wanted = (*CASES.get(run["case"], ()), run["clients"])
        found = [r for r in simulated if (r["policy"], r["preferences"], r["clients"]) == wanted]
        if not found or run["summary"]["errors"] or run["usage"]["others_share"] > MOST_TAKEN:
            continue
        row, summary = found[0], run["summary"]
        compared = {"tok_s": pair(row["tokens_per_s"], summary["output_tok_s"])}
        for name in ("first_token_ms", "gap_ms"):
            for index, quantile in enumerate(("p50", "p99")):
                compared[f"{name}_{quantile}"] = pair(row[name][index], summary[name][quantile])
        rows.append({"case": run["case"], "clients": run["clients"], "version": run["version"], "at": run["at"]} | compared)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("serve", type=pathlib.Path)
    parser.add_argument("--simulated", default="benches/results/simulate.json")
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    simulated = json.loads(pathlib.Path(args.simulated).read_text(encoding="utf-8"))["closed"]
    rows = compare(simulated, json.loads(args.serve.read_text(encoding="utf-8")))
    if not rows:
        raise SystemExit(f"{args.serve}: no run of {' or '.join(CASES)} that was simulated")
    columns = [name for name in rows[0] if isinstance(rows[0][name], dict)]
    print("| case | clients |", " | ".join(columns), "|")
    print("|---|---|" + "---|" * len(columns))
    for row in rows:
        cells = (f"{row[c]['predicted']:g} / {row[c]['measured']:g} = {row[c]['ratio']:.2f}" for c in columns)
        print(f"| {row['case']} | {row['clients']} |", " | ".join(cells), "|")
    if args.out:
        result = {"serve": args.serve.name, "simulated": pathlib.Path(args.simulated).name, "rows": rows}
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
