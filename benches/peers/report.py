"""The file of results, the table, and the ratios that matter."""

import json
import statistics

import load
import machine

# name -> (numerator, denominator), each (case, clients, measure); the goal stands beside it.
RATIOS = {
    "16 distinct over vllm's one model": (("ladle/distinct", 16), ("vllm/none", 16), "output_tok_s", ">= 0.9"),
    "16 distinct over llama.cpp's 16 distinct": (("ladle/distinct", 16), ("llama.cpp/distinct", 16), "output_tok_s", ">= 14"),
    "16 distinct over vllm's 16 merged ahead": (("ladle/distinct", 16), ("vllm/distinct", 16), "output_tok_s", ">= 18"),
    "16 distinct over 16 of one preference": (("ladle/distinct", 16), ("ladle/shared", 16), "output_tok_s", ">= 0.9"),
    "one preference over vllm, 16 clients": (("ladle/shared", 16), ("vllm/none", 16), "output_tok_s", ">= 1.0"),
    "one preference over vllm, 8 clients": (("ladle/shared", 8), ("vllm/none", 8), "output_tok_s", ">= 1.0"),
    "one client over vllm": (("ladle/shared", 1), ("vllm/none", 1), "output_tok_s", ">= 1.5"),
    "one client over llama.cpp": (("ladle/shared", 1), ("llama.cpp/none", 1), "output_tok_s", ">= 1.5"),
    "first token p50 over vllm, 16 shared": (("ladle/shared", 16), ("vllm/none", 16), "first_token_ms", "<= 1.0"),
    "first token p50 over vllm, 16 distinct": (("ladle/distinct", 16), ("vllm/none", 16), "first_token_ms", "<= 1.0"),
}


def summarise(row):
    """What a run comes to. Fresh and arriving preferences have measures of their own."""
    requests = row["requests"]
    out = load.summary(requests)
    out["peak_over_weights"] = round(row["memory"]["peak"] / row["weights_bytes"], 3)
    if row["case"].endswith("/fresh"):
        hot, fresh = ([r["first"] for r in requests if r["client"] == c and r["first"]] for c in (0, 1))
        out |= {"hot_first_ms": statistics.median(hot), "fresh_first_ms": statistics.median(fresh)}
        out["fresh_over_hot"] = round(out["fresh_first_ms"] / out["hot_first_ms"], 3)
    if "window_ms" in row:
        gaps = running_gaps(requests, row["window_ms"])
        out["running_gap_ms"] = load.spread([gap / 1e3 for gap in gaps])
        out["p99_over_median"] = round(out["running_gap_ms"]["p99"] / out["running_gap_ms"]["p50"], 3)
        arrived = [r["first"] / 1e3 for r in requests if r["client"] >= 8 and r["first"]]
        out["arrived_first_ms"] = load.spread(arrived)
    return out


def running_gaps(requests, window):
    """Gaps of the running requests that end between the first arrival and the last one's end."""
    gaps = []
    for request in (r for r in requests if r["client"] < 8):
        at = request["sent"] + (request["first"] or 0)
        for gap in request["gaps"]:
            at += gap
            if window[0] < at <= window[1]:
                gaps.append(gap)
    return gaps


def line(row):
    s = row["summary"]
    if "output_tok_s" not in s:
        return f"{row['case']:24} {row['clients']:3} failed: {row['requests'][0].get('error')}"
    first, gap = s["first_token_ms"], s["gap_ms"]
    text = (
        f"{row['case']:24} {row['clients']:3} {s['output_tok_s']:9.1f} {first['p50']:9.0f} {first['p99']:9.0f} "
        f"{gap['p50']:7.1f} {gap['p99']:7.1f} {row['memory']['peak'] / 2**20:7.0f} {100 * row['usage']['others_share']:5.0f} {s['errors']:4}"
    )
    if "fresh_over_hot" in s:
        text += f"   first token hot {s['hot_first_ms']:.0f}, fresh {s['fresh_first_ms']:.0f}, ratio {s['fresh_over_hot']:.2f}"
    if "running_gap_ms" in s:
        text += f"   running gap p50 {s['running_gap_ms']['p50']:.1f}, p99 {s['running_gap_ms']['p99']:.1f}, ratio {s['p99_over_median']:.2f}"
    return text


HEADER = f"{'case':24} {'N':>3} {'tok/s':>9} {'first p50':>9} {'first p99':>9} {'gap p50':>7} {'gap p99':>7} {'MiB':>7} {'oth%':>5} {'err':>4}"


class Result:
    """Results of many calls of the driver in one file."""

    def __init__(self, path, seed):
        self.path, self.seed = path, seed
        self.rows = json.loads(path.read_text())["runs"] if path.exists() else []

    def add(self, rows):
        new = {(row["case"], row["clients"]) for row in rows}
        self.rows = [row for row in self.rows if (row["case"], row["clients"]) not in new] + rows
        self.rows.sort(key=lambda row: (row["case"], row["clients"]))
        self.write()

    def ratios(self):
        rows = {(row["case"], row["clients"]): row["summary"] for row in self.rows}
        out = {}
        for name, (above, below, measure, goal) in RATIOS.items():
            values = [rows.get(key, {}).get(measure) for key in (above, below)]
            values = [v["p50"] if isinstance(v, dict) else v for v in values]
            if all(values):
                out[name] = {"ratio": round(values[0] / values[1], 3), "goal": goal}
        return out

    def write(self):
        head = {
            "what": "benches/peers/serve.py; times in ms, memory in bytes; ENV is what benches/peers/setup made",
            "machine": machine.describe(), "seed": self.seed, "ratios": self.ratios(),
        }
        runs = [dump_run(row) for row in self.rows]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(head, indent=1)[:-2] + ',\n "runs": [\n' + ",\n".join(runs) + "\n]}\n")

    def table(self):
        lines = [HEADER, *map(line, self.rows), ""]
        lines += [f"{name:44} {r['ratio']:8.3f}  goal {r['goal']}" for name, r in self.ratios().items()]
        return "\n".join(lines)


def dump_run(row):
    """One request a line, so that the file can be read and compared."""
    head = json.dumps({k: v for k, v in row.items() if k != "requests"})
    requests = ",\n".join(json.dumps(r, separators=(",", ":")) for r in row["requests"])
    return f'{head[:-1]}, "requests": [\n{requests}]}}'
