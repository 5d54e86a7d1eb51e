"""Runs benches of two checkouts in turns and compares them: see benches/run-paired."""

import argparse
import datetime
import json
import os
import pathlib
import statistics
import subprocess
import tempfile

import machine

ROOT = pathlib.Path(__file__).resolve().parents[2]
INPUTS = ROOT / "benches/peers/lora_update_torch.py"
# Whether more is better, by the suffix of a measured value's name.
MEASURES = {"tok_s": True, "merge_ms": False, "forward_s": False, "backward_s": False}


def build(checkout, benches):
    """The executables of `benches`, as cargo names them."""
    command = [os.environ.get("CARGO", "cargo"), "bench", "--workspace", "--no-run", "--message-format=json"]
    for bench in benches:
        command += ["--bench", bench]
    lines = subprocess.run(command, cwd=checkout, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    artefacts = [message for message in map(json.loads, lines) if message.get("executable")]
    return {a["target"]["name"]: a["executable"] for a in artefacts if "bench" in a["target"]["kind"]}


def measures(value, path=()):
    """(path, number) of everything measured; rows of a list are told apart by what they describe."""
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        for item in value:
            label = " ".join(str(item[key]) for key in ("dtype", "mode", "what", "rows", "n", "adapters") if key in item)
            yield from measures(item, (*path, label))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from measures(item, (*path, key))
    elif path[-1] in MEASURES:
        # The first of several times warms up.
        yield path, statistics.median(value[1:] or value) if isinstance(value, list) else value


def commit(checkout):
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=checkout, check=True, capture_output=True,
                          text=True).stdout.strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkouts", nargs=2, type=pathlib.Path, metavar=("BEFORE", "AFTER"))
    parser.add_argument("--benches", default="decode,merge")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--python", default="python3")
    parser.add_argument("--base")
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    benches = options.benches.split(",")
    if "update" in benches and not options.base:
        parser.error("--benches update needs --base: SmolLM2-135M-Instruct as a Hugging Face directory")
    binaries = [build(checkout, benches) for checkout in options.checkouts]
    commits = [commit(checkout) for checkout in options.checkouts]
    out = options.out or ROOT / f"benches/results/paired-{'-'.join(commits)}-{datetime.date.today()}-{machine.slug()}.json"
    report = {
        "command": f"benches/run-paired BEFORE AFTER --benches {options.benches} --rounds {options.rounds}",
        "before": commits[0], "after": commits[1], "machine": machine.describe(), "runs": [], "ratios": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        if "update" in benches:
            inputs = pathlib.Path(scratch, "update")
            inputs.mkdir()
            subprocess.run([options.python, INPUTS, "make", options.base, inputs], check=True)
        arguments = {
            "merge": [["--dir", scratch]],
            "update": [[options.base, f"{scratch}/update", shape, "3"] for shape in ("packed", "rloo")],
        }
        seen = {}
        for round_ in range(options.rounds):
            for bench in benches:
                for extra in arguments.get(bench, [[]]):
                    for side in (0, 1):
                        load = os.getloadavg()[0]
                        done = subprocess.run([binaries[side][bench], *extra], check=True, capture_output=True, text=True)
                        result = json.loads(done.stdout)
                        report["runs"].append({"round": round_, "side": commits[side], "bench": bench,
                                               "load_before": load, "result": result})
                        out.write_text(json.dumps(report, indent=1) + "\n")
                        for path, value in measures(result, (bench, *extra[2:3])):
                            seen.setdefault(path, ([], []))[side].append(value)
                    print(bench, *extra[2:3], f"round {round_ + 1} of {options.rounds}", flush=True)
    for path, (before, after) in seen.items():
        if not (before and after):
            print(f"{' / '.join(path):60} measured on one side alone")
            continue
        # How many times as fast the later one is, a pair each round.
        pairs = [a / b if MEASURES[path[-1]] else b / a for b, a in zip(before, after)]
        ratio = {"speed_after_over_before": round(statistics.median(pairs), 3), "pairs": [round(p, 3) for p in pairs]}
        report["ratios"][" / ".join(path)] = ratio
        print(f"{' / '.join(path):60} {ratio['speed_after_over_before']:.3f}  {ratio['pairs']}")
    out.write_text(json.dumps(report, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
