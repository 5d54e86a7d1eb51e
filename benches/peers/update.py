"""Runs training/benches/update.rs and lora_update_torch.py in turns: see benches/run-update."""

import argparse
import datetime
import json
import os
import pathlib
import resource
import statistics
import subprocess
import tempfile
import time

import machine

ROOT = pathlib.Path(__file__).resolve().parents[2]
PEER = "benches/peers/lora_update_torch.py"
# Tokens of all sequences that an update learns from, prompts counted once for each response.
TOKENS = {"packed": 8 * 128, "rloo": 16 * 200}
CASES = {
    "ladle": ("ladle", []),
    "ladle-recompute": ("ladle", ["recompute"]),
    "ladle-bf16": ("ladle", ["bf16"]),
    "torch-f32": ("torch", ["--loss", "peft", "--dtype", "float32"]),
    "torch-bf16": ("torch", ["--loss", "peft", "--dtype", "bfloat16"]),
    "trl-f32": ("torch", ["--loss", "trl", "--dtype", "float32"]),
    "trl-bf16": ("torch", ["--loss", "trl", "--dtype", "bfloat16"]),
}
ALL = [f"{case}/{shape}" for shape in TOKENS for case in CASES if shape == "rloo" or "trl" not in case]


def command(options, inputs, case):
    name, shape = case.split("/")
    kind, extra = CASES[name]
    if kind == "ladle":
        bench = [os.environ.get("CARGO", "cargo"), "bench", "--quiet", "--workspace", "--bench", "update", "--"]
        return [*bench, options.base, inputs, shape, str(options.repeats), *extra]
    return [options.python, PEER, "run", options.base, inputs, "--shape", shape, "--repeats", str(options.repeats), *extra]


def measure(options, inputs, case):
    """One process: its JSON line, and what the rest of the machine used meanwhile."""
    def used():
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return machine.busy_seconds(), children.ru_utime + children.ru_stime, time.monotonic()

    start = used()
    done = subprocess.run(command(options, inputs, case), cwd=ROOT, capture_output=True, text=True)
    busy, own, wall = (b - a for a, b in zip(start, used()))
    if done.returncode:
        return {"case": case, "error": done.stderr.strip().splitlines()[-3:]}
    row = json.loads(done.stdout.strip().splitlines()[-1])
    # The first update warms up.
    seconds = [f + b for f, b in zip(row["forward_s"], row["backward_s"])][1:]
    return {
        "case": case, **row, "update_s": statistics.median(seconds),
        "tokens_per_s": TOKENS[case.split("/")[1]] / statistics.median(seconds),
        "others_share": round(max(0.0, busy - own) / (wall * os.cpu_count()), 3),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python")
    parser.add_argument("base")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", default=",".join(ALL))
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    options.base = str(pathlib.Path(options.base).resolve())
    build = [os.environ.get("CARGO", "cargo"), "bench", "--quiet", "--workspace", "--bench", "update", "--no-run"]
    subprocess.run(build, cwd=ROOT, check=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    report = {
        "command": f"benches/run-update PYTHON BASE --rounds {options.rounds} --repeats {options.repeats}",
        "commit": commit.stdout.strip(), "machine": machine.describe(),
        "what": "LoRA rank 16 on q, k, v, o of SmolLM2-135M-Instruct; seconds of each update, the first one warms up",
        "tokens": TOKENS, "rows": [],
    }
    out = options.out or ROOT / f"benches/results/update-{datetime.date.today()}-{machine.slug()}.json"
    with tempfile.TemporaryDirectory() as inputs:
        subprocess.run([options.python, PEER, "make", options.base, inputs], cwd=ROOT, check=True)
        for round_ in range(options.rounds):
            for case in options.cases.split(","):
                row = {"round": round_, **measure(options, inputs, case)}
                report["rows"].append(row)
                out.write_text(json.dumps(report, indent=1) + "\n")
                print(case, row.get("error") or
                      f"{row['update_s']:.2f} s, {row['tokens_per_s']:.0f} tok/s, peak {row['peak_mib']:.0f} MiB, "
                      f"loss {row['losses'][0]:.5f}, norm {row['grad_norms'][0]:.4f}, others {row['others_share']}", flush=True)
    print(out)


if __name__ == "__main__":
    main()
