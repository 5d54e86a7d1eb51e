"""Tables, verdicts and figures of the experiments in bone-vs-rewarded, one-policy and types, from what
`scripts/paper-table` has run so far.

    python training/results/paper.py WORK      writes WORK/tables/{tables.md,*.json,*.svg}

A comparison needs finished evaluations of two training seeds; `train-backbones aggregate` makes the
intervals. Standard library only; the figures need matplotlib and are left out without it.
"""

import json
import pathlib
import statistics
import subprocess
import sys

RS, BONE, CLAMPED, CHOSEN = "rewarded soup", "bone soup (nominal)", "bone soup (clamped)", ", chosen α"
OWN, ANSWER = f"{BONE} of b06-own", f"{BONE} of b06-answer"
CLAMPED_ANSWER = f"{CLAMPED} of b06-answer"
# Evaluation and baseline of every comparison.
COMPARISONS = [("long", RS), ("long", RS + CHOSEN), ("long", BONE), ("short", RS), ("short", RS + CHOSEN), ("middle", RS), ("middle", RS + CHOSEN), ("kl", RS), ("factors", OWN), ("factors", RS), ("answer", ANSWER), ("answer", CLAMPED_ANSWER), ("answer", RS), ("greedy", RS), ("plain", RS)]
# The oracles that no method of the comparison was trained as: name ends, run and backbone.
ORACLES = ("of half", "of b08")


class Work:
    """What an experiment's directory holds."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)

    def evaluations(self, name):
        """Directories of the finished evaluations, one a training seed."""
        suffix, folder = ("-plain", "long") if name == "plain" else ("", name)
        found = []
        for path in sorted(self.directory.glob(f"evaluations/seed*/{folder}")):
            seed = path.parent.name
            if seed.endswith("-plain") != bool(suffix):
                continue
            if (self.directory / "done" / f"{seed}+eval-{folder}.json").is_file():
                found.append(path)
        return found

    def fronts(self, name):
        return [json.loads((path / "front.json").read_text()) for path in self.evaluations(name)]

    def aggregate(self, name, baseline):
        """Gains over a baseline, by method and region; made anew. None of one seed alone."""
        directories = self.evaluations(name)
        if len(directories) < 2:
            return None
        out = self.directory / "tables" / f"{name}-over-{baseline}".replace(" ", "-").replace(",", "")
        command = [self.directory / "bin/train-backbones", "aggregate", *directories, "--out", out, "--baseline", baseline]
        subprocess.run(command, check=True, capture_output=True)
        rows = json.loads((out / "aggregate.json").read_text())["rows"]
        return {row["method"]: row["gains"] for row in rows}


def shown(gain):
    return "–" if gain is None else f"{gain['mean']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})"


def verdict(holds, refuted):
    return "holds" if holds else "refuted" if refuted else "undecided"


def oracle_gaps(fronts):
    """Gap to the oracles of Rewarded Soup and of Bone Soup, in σ: a list over seeds of {μ: pair}, the
    two oracles at (.5, .5) as one point."""
    seeds = []
    for front in fronts:
        by_mu = {}
        for oracle in front["oracles"]:
            if oracle["name"].endswith(ORACLES):
                gaps = dict(oracle["gaps"])
                by_mu.setdefault(round(oracle["point"]["preference"][0], 1), []).append([gaps[RS], gaps[BONE]])
        if by_mu:
            seeds.append({mu: columns(pairs) for mu, pairs in sorted(by_mu.items())})
    return seeds


def columns(rows):
    """Mean of each column."""
    return [statistics.mean(column) for column in zip(*rows)]


def hypotheses(gains, fronts):
    """Rows of claim, figure and verdict; what was not run yet is left out."""
    found = []

    def interval(label, comparison, method, region, holds, refuted):
        table = gains.get(comparison)
        gain = table and table.get(method, {}).get(region)
        if gain:
            found.append((label, shown(gain), verdict(holds(gain), refuted(gain))))

    above, not_above = (lambda g: g["low"] > 0), (lambda g: g["high"] <= 0)
    below, not_below = (lambda g: g["high"] < 0), (lambda g: g["low"] >= 0)
    interval("H1 inside, long: Bone Soup − Rewarded Soup > 0", ("long", RS), BONE, "interior", above, not_above)
    interval("H2a corners, long: Bone Soup − Rewarded Soup < 0", ("long", RS), BONE, "corners", below, not_below)
    interval("H2b corners, long: clamped − Bone Soup > 0", ("long", BONE), CLAMPED, "corners", above, not_above)
    interval("H3a inside, short: Bone Soup − Rewarded Soup > 0", ("short", RS), BONE, "interior", above, not_above)
    near, far = (lambda g: abs(g["mean"]) <= 0.03), (lambda g: g["mean"] > 0.05)
    interval("H3b inside, short: Bone Soup − Rewarded Soup at its α within ±.03", ("short", RS + CHOSEN), BONE, "interior", near, far)
    seeds = oracle_gaps(fronts["oracles"])
    if seeds:
        pairs = [columns(by_mu.values()) for by_mu in seeds]
        rewarded, bone = columns(pairs)
        smaller = sum(own < other for other, own in pairs)
        each = ", ".join("{1:.2f} against {0:.2f} at {2:g}".format(*columns(of[mu] for of in seeds), mu) for mu in seeds[0])
        text = f"{bone:.3f} against {rewarded:.3f}, smaller in {smaller} of {len(pairs)} seeds; {each}"
        judged = verdict(smaller == len(pairs), bone >= rewarded) if len(pairs) >= 3 else "open until three seeds"
        found.append(("H4 long: mean gap to the oracles at μ = .2, .5, .8 smaller for Bone Soup", text, judged))
    interval("H5 η = .3, inside: Bone Soup − Rewarded Soup ≤ 0", ("kl", RS), BONE, "interior", not_above, above)
    interval("H6 inside, long: shared A − own A ≥ 0", ("factors", OWN), BONE, "interior", not_below, below)
    interval("H7 inside, long: MOD on bone backbones − Bone Soup ≥ 0", ("long", BONE), "mod on bone backbones", "interior", not_below, below)
    within, outside = (lambda g: -0.1 <= g["low"] and g["high"] <= 0.1), (lambda g: g["low"] > 0.1 or g["high"] < -0.1)
    interval("H8 inside, long: full activation − answer only within ±.1", ("answer", ANSWER), BONE, "interior", within, outside)
    return found


def spread(values, digits=3):
    if any(value is None for value in values):
        return "–"
    more = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{more}"


def methods(fronts):
    """The methods that all fronts have at α = 0, and what each chose, as lists over seeds."""
    table = {}
    for method in fronts[0]["methods"]:
        if method["alpha"] == 0.0:
            name = method["method"]
            table[name] = [next((m for m in f["methods"] if m["method"] == name), None) for f in fronts]
            chosen = [next((s["best"] for s in f["selected"] if s["method"] == name), None) for f in fronts]
            if None not in chosen and any(chosen):
                named = [name if best == 0 else f"{name}, α = {best:g}" for best in chosen]
                table[f"{name}, α = {'/'.join(f'{best:g}' for best in chosen)}"] = [
                    next((m for m in f["methods"] if m["method"] == n), None) for f, n in zip(fronts, named)
                ]
    return {name: found for name, found in table.items() if None not in found}


def front_table(fronts):
    """Metrics by method."""
    lines = ["| method | testing | inside | corners | hypervolume | controllability/ceiling | front length | sparsity | spacing | raw testing |", "|" + "---|" * 10]
    ceiling = fronts[0]["controllability_ceiling"]
    for name, found in methods(fronts).items():
        metric = lambda key: [m["metrics"][key] for m in found]
        region = lambda key: [m["regions"][key] for m in found]
        cells = [name, spread(metric("inner_product")), spread(region("interior")), spread(region("corners")), spread(metric("hypervolume")), f"{spread(metric('controllability'))} / {ceiling:.3f}", spread(metric("front_length"), 1), spread(metric("sparsity")), spread(metric("spacing")), spread([m["raw_inner_product"] for m in found], 4)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def point_table(fronts):
    """Raw rewards and guards of every point, means over seeds."""
    objectives = [objective["name"] for objective in fronts[0]["objectives"]]
    heads = ["method", "μ", *objectives, "σ", "words", "ended", "distinct-2", "ROUGE-L", "KL", "dominated"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name, found in methods(fronts).items():
        for index, first in enumerate(found[0]["points"]):
            points = [m["points"][index] for m in found]
            mean = lambda value: statistics.mean(value(point) for point in points)
            value = lambda p: sum(mu * z for mu, z in zip(p["preference"], p["standardised"]))
            optional = lambda key, where: f"{mean(lambda p: where(p)[key]):.2f}" if all(where(p).get(key) is not None for p in points) else "–"
            cells = [name, "(" + ", ".join(f"{mu:.2f}" for mu in first["preference"]) + ")"]
            cells += [f"{mean(lambda p, k=k: p['mean'][k]):.3f}" for k in range(len(objectives))]
            cells += [f"{mean(value):+.3f}", optional("words", lambda p: p["text"]), optional("finished", lambda p: p["text"]), optional("distinct_2", lambda p: p["text"]), optional("rouge_l", lambda p: p["text"]), optional("kl", lambda p: p), f"{sum(p['dominated'] for p in points)}/{len(points)}"]
            lines.append("| " + " | ".join(cells) + " |")
            if name == "θ_sft":
                break
    return lines


def gain_table(gains):
    lines = ["| compared, over | all | inside | corners |", "|---|---|---|---|"]
    for (name, baseline), table in gains.items():
        for method, regions in (table or {}).items():
            if regions:
                cells = [f"{name}: {method} − {baseline}", *(shown(regions.get(key)) for key in ("all", "interior", "corners"))]
                lines.append("| " + " | ".join(cells) + " |")
    return lines


def average_of(method):
    """The arm with fixed weights that an arm of one policy is compared with."""
    # A method carries its run's label from the second of its kind on: average of average-2111.
    return "average of average-2111" if "2111" in method else "average"


def policy_points(fronts):
    """By arm, its test point of every seed."""
    point = lambda front, name: next(m["points"][0] for m in front["methods"] if m["method"] == name)
    return {m["method"]: [point(front, m["method"]) for front in fronts] for m in fronts[0]["methods"]}


def policies(fronts):
    """Test means in σ of each single policy, its weakest objective, and what that gains over average."""
    objectives = [objective["name"] for objective in fronts[0]["objectives"]]
    heads = ["policy", *objectives, "mean", "weakest", "weakest − average's", "by seed", "words", "KL"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    arms = policy_points(fronts)
    for name, points in arms.items():
        rewards = [point["standardised"] for point in points]
        gains = weakest_gains(arms, name)
        cells = [name, *(spread([each[k] for each in rewards]) for k in range(len(objectives)))]
        cells += [spread([statistics.mean(each) for each in rewards]), spread([min(each) for each in rewards])]
        cells += [spread(gains), ", ".join(f"{gain:+.3f}" for gain in gains)]
        cells += [spread([p["text"]["words"] for p in points], 1), spread([p.get("kl") for p in points], 2)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def weakest_gains(arms, name):
    """Weakest objective of an arm − that of average with the same weights, by seed."""
    weakest = lambda points: [min(point["standardised"]) for point in points]
    return [own - base for own, base in zip(weakest(arms[name]), weakest(arms[average_of(name)]))]


def types_outcomes(fronts):
    """Which strategies raise the weakest objective, in the words of that experiment's statement."""
    words = {"holds": "raises it", "refuted": "does not"}
    rows = [row for row in policy_hypotheses(fronts) if not row[0].startswith("P4")]
    return [(claim[3:], text, words.get(found, found)) for claim, text, found in rows]


def policy_hypotheses(fronts):
    """P1 to P4 at 1:1:1:1."""
    arms = policy_points(fronts)
    rows, holding = [], []
    for label, name in (("P1", "inverse"), ("P2", "delta"), ("P3", "gdpo")):
        gains = weakest_gains(arms, name)
        mean = statistics.mean(gains)
        holds = min(gains) > 0 and mean >= 0.05
        holding += [name] if holds else []
        rows.append((f"{label} {name} raises the weakest objective", spread(gains), verdict(holds, mean <= 0)))
    overall = lambda name: statistics.mean(statistics.mean(point["standardised"]) for point in arms[name])
    falls = {name: overall("average") - overall(name) for name in holding}
    if falls:
        text = ", ".join(f"{name} {fall:.3f}" for name, fall in falls.items())
        within = all(fall <= 0.05 for fall in falls.values())
        rows.append(("P4 the mean of the four falls by at most .05 for those", text, verdict(within, not within)))
    if len(fronts) < 3:
        rows = [(claim, text, "open until three seeds") for claim, text, _ in rows]
    return rows


def verdict_table(rows):
    return ["| claim | found | verdict |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]


def figures(work, fronts, out):
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "ladle", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    shown_names = [name for name in ("short", "middle", "long", "kl") if fronts[name]]
    if shown_names:
        rows = (len(shown_names) + 1) // 2
        figure, axes = pyplot.subplots(rows, 2, figsize=(8.4, 3.8 * rows + 0.8), layout="constrained", squeeze=False)
        looks, handles = {}, {}
        for axis in axes.flat[len(shown_names) :]:
            axis.set_axis_off()
        for axis, name in zip(axes.flat, shown_names):
            for method, found in methods(fronts[name]).items():
                # A chosen α differs by panel; a method looks the same in all.
                label = f"{method.split(', α')[0]}, chosen α" if ", α" in method else method
                marker, color = looks.setdefault(label, ("*os^DvPXd<>h"[len(looks) % 12], f"C{len(looks) % 10}"))
                points = [list(zip(*(p["standardised"] for p in m["points"]))) for m in found]
                x, y = ([statistics.mean(values) for values in zip(*(p[k] for p in points))] for k in (0, 1))
                if method == "θ_sft":
                    x, y = x[:1], y[:1]
                handles[label] = axis.plot(x, y, marker=marker, color=color, markersize=5, linewidth=0.8)[0]
            axis.set_title(f"{name}, mean of {len(fronts[name])} seeds", fontsize=9)
            first, second = (o["name"] for o in fronts[name][0]["objectives"])
            axis.set_xlabel(f"{first}, σ")
            axis.set_ylabel(f"{second}, σ")
            axis.grid(alpha=0.3)
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=7)
        figure.savefig(out / "fronts.svg", metadata={"Date": None})
    runs = sorted(path for path in work.directory.glob("runs/seed*/*/metrics/*/metrics.jsonl") if path.parent.name != "sft")
    if runs:
        names = sorted({path.parts[-4] for path in runs})
        figure, axes = pyplot.subplots(len(names), 3, figsize=(9.5, 2.2 * len(names)), layout="constrained", squeeze=False)
        for path in runs:
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            keys = [key for key in ("reward/faithful", "reward/brief", "kl") if rows and key in rows[0]]
            for axis, key in zip(axes[names.index(path.parts[-4])], keys):
                color = {"faithful": "C0", "brief": "C1"}.get(path.parent.name, "C2")
                axis.plot([row["step"] for row in rows], [row[key] for row in rows], linewidth=0.8, color=color)
                axis.set_title(f"{path.parts[-4]}: {key}", fontsize=8)
                axis.grid(alpha=0.3)
        lines = [pyplot.Line2D([], [], color=color) for color in ("C0", "C1", "C2")]
        figure.legend(lines, ["backbone faithful", "backbone brief", "others"], loc="outside lower center", ncols=3, fontsize=8)
        figure.savefig(out / "curves.svg", metadata={"Date": None})


def main():
    work = Work(sys.argv[1])
    out = work.directory / "tables"
    out.mkdir(parents=True, exist_ok=True)
    single = work.fronts("policies")
    if single:
        types = json.loads((work.directory / "record.json").read_text()).get("plan") == "types"
        title, rows = ("Four types of task", types_outcomes) if types else ("One policy", policy_hypotheses)
        text = [f"# {title}, {len(single)} seeds", "", *verdict_table(rows(single)), "", *policies(single)]
        (out / "tables.md").write_text("\n".join(text) + "\n")
        print(f"tables: {out}/tables.md")
        return
    names = ["long", "short", "middle", "oracles", "kl", "factors", "answer", "greedy", "plain"]
    fronts = {name: work.fronts(name) for name in names}
    gains = {comparison: work.aggregate(*comparison) for comparison in COMPARISONS}
    text = ["# Tables", "", ", ".join(f"{name}: {len(fronts[name])} seeds" for name in names), ""]
    text += ["## Hypotheses", "", *verdict_table(hypotheses(gains, fronts))]
    text += ["", "## Gains, in σ, 95 % intervals over seeds and rows", "", *gain_table(gains)]
    for name in names:
        if fronts[name]:
            text += ["", f"## Fronts: {name}", "", *front_table(fronts[name]), "", *point_table(fronts[name])]
    (out / "tables.md").write_text("\n".join(text) + "\n")
    figures(work, fronts, out)
    print(f"tables: {out}/tables.md")


if __name__ == "__main__":
    main()
