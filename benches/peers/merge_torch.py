"""Time torch and mergekit on the checkpoints that `benches/merge.rs` wrote. Prints JSON.

usage: merge_torch.py DIR [--reps N] [--dtypes bf16,f16,f32] [--mergekit PYTHON]

DIR/bf16/model{0..3} and so on are Hugging Face checkpoints. Bytes of a merge: one read per source,
one write. torch adds in place, into tensors that are allocated once, in two ways: in the storage
type (rounds after every term) and through f32 (rounds once, as ladle does). mergekit is timed as
its command line, from files to a file, when a Python that has it is named.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile
import time

import torch
from safetensors.torch import load_file

COEFFICIENTS = {2: [1.4, -0.4], 3: [1.1, -0.4, 0.3], 4: [0.9, -0.4, 0.3, 0.2]}


def in_place(out, sources, coefficients):
    for name, to in out.items():
        torch.mul(sources[0][name], coefficients[0], out=to)
        for source, c in zip(sources[1:], coefficients[1:]):
            to.add_(source[name], alpha=c)


def through_f32(out, sources, coefficients):
    for name, to in out.items():
        total = sources[0][name].float().mul_(coefficients[0])
        for source, c in zip(sources[1:], coefficients[1:]):
            total.add_(source[name], alpha=c)
        to.copy_(total)


def median_ms(run, reps):
    times = []
    for rep in range(reps + 1):
        start = time.perf_counter()
        run()
        if rep:
            times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def mergekit(python, directory, n):
    """Seconds of `mergekit-yaml` on n bf16 models, import of the program included and apart."""
    models = [
        {"model": str(directory / f"model{i}"), "parameters": {"weight": c}}
        for i, c in enumerate(COEFFICIENTS[n])
    ]
    config = {
        "merge_method": "linear",
        "dtype": "bfloat16",
        "models": models,
        "parameters": {"normalize": False},
    }
    module = "mergekit.scripts.run_yaml"
    with tempfile.TemporaryDirectory() as scratch:
        path = pathlib.Path(scratch, "merge.yaml")
        path.write_text(json.dumps(config))  # JSON is YAML
        seconds = {}
        for what, arguments in (("start", ["--help"]), ("whole", [path, f"{scratch}/out"])):
            command = [python, "-m", module, *map(str, arguments)]
            start = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            seconds[what] = round(time.perf_counter() - start, 3)
            if done.returncode:
                return {"error": done.stderr.strip().splitlines()[-1:], "command": what}
    version = subprocess.run(
        [python, "-c", "from importlib.metadata import version; print(version('mergekit'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()
    return {"version": version, "n": n, "dtype": "bf16", "whole_s": seconds["whole"],
            "start_s": seconds["start"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--reps", type=int, default=7)
    parser.add_argument("--dtypes", default="bf16,f16,f32")
    parser.add_argument("--mergekit", metavar="PYTHON")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    rows = []
    for dtype in arguments.dtypes.split(","):
        for n, coefficients in COEFFICIENTS.items():
            folders = [arguments.directory / dtype / f"model{i}" for i in range(n)]
            sources = [load_file(folder / "model.safetensors") for folder in folders]
            out = {name: torch.empty_like(tensor) for name, tensor in sources[0].items()}
            moved = (n + 1) * sum(t.nbytes for t in out.values())
            row = {"dtype": dtype, "n": n, "bytes": moved}
            for name, run in (("in_place", in_place), ("through_f32", through_f32)):
                ms = median_ms(lambda: run(out, sources, coefficients), arguments.reps)
                row[f"{name}_ms"] = round(ms, 3)
                row[f"{name}_gb_s"] = round(moved / ms / 1e6, 3)
            rows.append(row)
    report = {"torch": torch.__version__, "threads": torch.get_num_threads(), "full": rows}
    if arguments.mergekit:
        report["mergekit"] = mergekit(arguments.mergekit, arguments.directory / "bf16", 3)
    else:
        report["mergekit"] = "not measured: no Python with mergekit was named"
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
