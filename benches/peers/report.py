"""The file of results, the table, and the ratios that matter."""

import json
import statistics

import load
import machine

# name -> (numerator, denominators of which the best counts, measure, comparison, goal by model).
# A side is (case, clients).
TOKENS, FIRST = "output_tok_s", "first_token_ms"
MODELS = ("smollm2-135m", "qwen2.5-0.5b", "qwen2.5-1.5b")
RATIOS = {
    "16 preferences over vLLM's one model": (("ladle/distinct", 16), [("vllm/none", 16)], TOKENS, ">=", (1.2, 1.1, 1.1)),
    "16 of one preference over vLLM": (("ladle/shared", 16), [("vllm/none", 16)], TOKENS, ">=", (1.3, 1.2, 1.2)),
    "one client over the better of vLLM and llama.cpp":
        (("ladle/shared", 1), [("vllm/none", 1), ("llama.cpp/none", 1)], TOKENS, ">=", (1.3, 1.05, 1.05)),
    "one client over mistral.rs": (("ladle/shared", 1), [("mistral.rs/none", 1), ("mistral.rs/none-f32", 1)], TOKENS, ">=", (None,) * 3),
    "16 preferences over mistral.rs's one model": (("ladle/distinct", 16), [("mistral.rs/none", 16), ("mistral.rs/none-f32", 16)], TOKENS, ">=", (None,) * 3),
    "16 preferences over llama.cpp's 16 mixes": (("ladle/distinct", 16), [("llama.cpp/distinct", 16)], TOKENS, ">=", (14, 12, None)),
    "16 preferences over vLLM's 16 merged ahead": (("ladle/distinct", 16), [("vllm/distinct", 16)], TOKENS, ">=", (None, None, None)),
    "16 preferences over 16 of one": (("ladle/distinct", 16), [("ladle/shared", 16)], TOKENS, ">=", (0.9, 0.9, 0.9)),
    "first token p50 over vLLM, 16 clients of one": (("ladle/shared", 16), [("vllm/none", 16)], FIRST, "<=", (0.9, 0.9, 0.9)),
    "first token p50 over vLLM, 16 preferences": (("ladle/distinct", 16), [("vllm/none", 16)], FIRST, "<=", (0.9, 0.9, 0.9)),
    "q8_0, 16 preferences over llama.cpp's one model":
        (("ladle/distinct-q8_0", 16), [("llama.cpp/none-q8_0", 16)], TOKENS, ">=", (2, 2, None)),
}
# The plug-in, in either type of vLLM's.
RATIOS |= {
    f"{what} over vLLM with the plug-in{end}": ((f"ladle/{mixes}", n), [(f"vllm/plug-in-{mixes}{end}", n)], TOKENS, ">=", (None,) * 3)
    for end in ("", "-f32")
    for what, mixes, n in (
        ("16 preferences", "distinct", 16), ("16 of one preference", "shared", 16),
        ("one client of one preference", "shared", 1), ("one client of 16 preferences in turn", "turns", 1),
    )
}


def summarise(row):
    """What a run comes to. Fresh and arriving preferences have measures of their own."""
    requests = row["requests"]
    out = load.summary(requests)
    out["peak_over_weights"] = round(row["memory"]["peak"] / row["weights_bytes"], 3)
    if "fresh" in row["case"]:
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

    what = "benches/peers/serve.py"
    # What tells one row from another.
    key = ("case", "clients", "round")

    def __init__(self, path, model, seed):
        self.path, self.model, self.seed = path, model, seed
        self.before = json.loads(path.read_text()) if path.exists() else {}
        self.rows = self.before.get("runs", [])

    def add(self, rows):
        key = lambda row: tuple(row[name] for name in self.key)
        new = set(map(key, rows))
        self.rows = sorted([row for row in self.rows if key(row) not in new] + rows, key=key)
        self.write()

    def ratios(self):
        """Every ratio of each round that has both sides, and their geometric mean."""
        value = {}
        for row in self.rows:
            for measure in (TOKENS, FIRST):
                found = row["summary"].get(measure)
                found = found["p50"] if isinstance(found, dict) else found
                value[row["case"], row["clients"], measure, row["round"]] = found
        rounds, out = sorted({row["round"] for row in self.rows}), {}
        for name, (above, below, measure, comparison, goals) in RATIOS.items():
            ratios = []
            for round in rounds:
                top = value.get((*above, measure, round))
                bottoms = [value.get((*side, measure, round)) for side in below]
                if top and all(bottoms):
                    ratios.append(round_to(top / max(bottoms)))
            if ratios:
                goal = dict(zip(MODELS, goals)).get(self.model)
                out[name] = {"ratio": round_to(statistics.geometric_mean(ratios)), "rounds": ratios,
                             "goal": f"{comparison} {goal}" if goal else None}
        return out

    def head(self):
        return {
            "what": f"{self.what}; times in ms, memory in bytes; ENV is what benches/peers/setup made",
            "model": self.model, "machine": machine.describe(), "seed": self.seed, "ratios": self.ratios(),
        }

    def write(self):
        runs = [dump_run(row) for row in self.rows]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.head(), indent=1)[:-2] + ',\n "runs": [\n' + ",\n".join(runs) + "\n]}\n")

    def table(self):
        lines = [HEADER, *map(line, self.rows), ""]
        for name, r in self.ratios().items():
            lines.append(f"{name:50} {r['ratio']:8.3f}  of {', '.join(map(str, r['rounds']))}  goal {r['goal'] or 'none'}")
        return "\n".join(lines)


def round_to(ratio):
    return round(ratio, 3)


def dump_run(row):
    """One request a line, so that the file can be read and compared."""
    head = json.dumps({k: v for k, v in row.items() if k != "requests"})
    requests = ",\n".join(json.dumps(r, separators=(",", ":")) for r in row["requests"])
    return f'{head[:-1]}, "requests": [\n{requests}]}}'
