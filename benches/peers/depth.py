"""Decoding speed at depth: one client, prompts of several lengths, keys and values in several types.

usage: depth.py ENV [--model NAME] [--cases ladle/bf16,llama.cpp/f16] [--depths 128,2048,8064] [--tokens N]
                [--rounds N] [--first-round N] [--agree N] [--out FILE]

ENV is the directory that `benches/peers/setup` made. All servers run the same model, the base (ladle: the
weights that all backbones began from, in --merge-mode fused), greedy, end of sequence ignored, on prompts
of exactly so many tokens: paragraphs of this repository's pages in seeded order, others for each round and
depth. Decoding speed is 1 over the median gap between tokens. Cases run in turns (A B A B); a case that is
measured again replaces what FILE had of its round. LADLE names ladle's binary.

Then ladle's types are compared token by token, on --agree prompts of each depth: f32 answers, and each
type computes prompt and answer anew (`echo` with `logprobs`). `answer` is the share of the answer's
positions at which its likeliest token is that of f32, `prompt` the share of the last 512 positions of the
prompt, where the text is not the model's own, and `leading` how many tokens of its own greedy answer equal
f32's before the first that differs.
"""

import argparse
import asyncio
import datetime
import json
import pathlib
import random
import statistics

import tokenizers

import load
import machine
import report
from report import round_to
from serve import described, running, say
from servers import ROOT, Ladle, ladle, llama

REFERENCE = "f32"
# Tokens of the prompt that warms a server up.
WARM = 128
# Positions at the end of a prompt at which likeliest tokens are compared.
COMPARED = 512
# name -> (numerator, denominators of which the best counts).
RATIOS = {
    "bf16 over llama.cpp's f16": ("ladle/bf16", ["llama.cpp/f16", "llama.cpp/f16-unfused"]),
    "int8 over llama.cpp's q8_0": ("ladle/int8", ["llama.cpp/q8_0"]),
    "int8 over bf16": ("ladle/int8", ["ladle/bf16"]),
}


class Base(Ladle):
    """ladle serving the model that llama.cpp has."""

    def request(self, prompt, mix, tokens, seed):
        path, body = super().request(prompt, mix, tokens, seed)
        del body["preference"]
        return path, body | {"weights": "sft", "temperature": 0}


def case(dtype):
    return ladle("none", "--merge-mode", "fused", "--kv-dtype", dtype) | {"server": Base}


CASES = {
    **{f"ladle/{dtype}": case(dtype) for dtype in (REFERENCE, "bf16", "int8")},
    "llama.cpp/f16": llama("none", "bf16"),
    # Without flash attention, which is its default: slower with prompts, faster with single tokens.
    "llama.cpp/f16-unfused": llama("none", "bf16", "-fa", "off"),
    "llama.cpp/q8_0": llama("none", "bf16", "-ctk", "q8_0", "-ctv", "q8_0", "-fa", "on"),
}


class Text:
    """Prompts of a number of tokens."""

    def __init__(self, base):
        self.tokenizer = tokenizers.Tokenizer.from_file(str(base / "tokenizer.json"))
        pages = sorted((ROOT / "docs").glob("*.md"))
        self.paragraphs = [part for page in pages for part in page.read_text().split("\n\n")]

    def tokens(self, count, seed):
        rng = random.Random(f"{seed} {count}")
        text = "\n\n".join(rng.sample(self.paragraphs, len(self.paragraphs)))
        found = self.tokenizer.encode(text).ids
        if len(found) < count:
            raise SystemExit(f"--depths {count}: the pages have {len(found)} tokens")
        return found[:count]


def started(name, options):
    """The server of a case, not yet running."""
    return CASES[name]["server"](options.env, options.model, options.port, CASES[name], 1, options.context)


async def measure(name, round, text, options):
    """Starts the server of a case and asks it for an answer at each depth."""
    server, rows = started(name, options), []
    how = described(server)
    async with running(server) as (session, start_s):
        for depth in [None, *options.depths]:
            prompt = text.tokens(depth or WARM, f"{options.seed + round}{'' if depth else ' warm'}")
            run = load.Run(session, server, options.seed, iter([prompt]))
            before = machine.Usage(server.pid)
            request = load.read(await run.ask(0, 0, options.tokens), server)
            if "error" in request:
                raise SystemExit(f"{name}, {depth} tokens: {request['error']}")
            if depth is None:
                continue
            row = {
                "case": name, "depth": depth, "round": round, "tokens": options.tokens, **how,
                "at": datetime.datetime.now().isoformat(timespec="seconds"), "start_s": start_s,
                "memory": machine.memory(server.pid), "usage": before.since(), "requests": [request],
            }
            gap = statistics.median(request["gaps"])
            row["summary"] = {"decode_tok_s": round_to(1e3 / gap), "gap_ms": gap, "first_token_ms": request["first"]}
            say(line(row))
            rows.append(row)
    return rows


async def post(session, server, path, body):
    async with session.post(server.url + path, json={"weights": "sft", "temperature": 0, **body}) as response:
        answer = await response.json()
        if response.status != 200:
            raise SystemExit(f"{path}: {answer}")
        return answer


async def answers(session, server, prompts, tokens):
    """Greedy answers, as token ids."""
    body = {"max_tokens": tokens, "ignore_eos": True, "logprobs": 0}
    found = [await post(session, server, "/generate", body | {"prompt": prompt}) for prompt in prompts]
    return [[token["id"] for token in answer["tokens"]] for answer in found]


async def likeliest(session, server, sequences):
    """The likeliest token at each position of given sequences but the first."""
    body = {"max_tokens": 0, "echo": True, "logprobs": 1}
    found = [await post(session, server, "/v1/completions", body | {"prompt": sequence}) for sequence in sequences]
    return [[max(top, key=top.get) for top in answer["choices"][0]["logprobs"]["top_logprobs"][1:]] for answer in found]


async def agreement(text, options):
    """How often each type of ladle's chooses the token that f32 chooses, by type and depth."""
    prompts = {depth: [text.tokens(depth, f"{options.seed} agree {k}") for k in range(options.agree)] for depth in options.depths}
    own, chosen, out = {}, {}, {}
    for name in [name for name in CASES if name.startswith("ladle/")]:
        server, dtype = started(name, options), name.removeprefix("ladle/")
        say(f"== agreement, {name}")
        async with running(server) as (session, _):
            for depth, given in prompts.items():
                own[dtype, depth] = await answers(session, server, given, options.tokens)
                sequences = [prompt + answer for prompt, answer in zip(given, own[REFERENCE, depth])]
                chosen[dtype, depth] = await likeliest(session, server, sequences)
        if dtype == REFERENCE:
            continue
        for depth in options.depths:
            pairs = [list(zip(a, b)) for a, b in zip(chosen[REFERENCE, depth], chosen[dtype, depth])]
            out.setdefault(dtype, {})[str(depth)] = {
                "answer": share([pair for found in pairs for pair in found[-options.tokens:]]),
                "prompt": share([pair for found in pairs for pair in found[:-options.tokens][-COMPARED:]]),
                "leading": [leading(a, b) for a, b in zip(own[REFERENCE, depth], own[dtype, depth])],
            }
            say(agreement_line(dtype, depth, out[dtype][str(depth)]))
    return {"against": REFERENCE, "tokens": options.tokens, "prompts": options.agree, "by_type": out}


def share(pairs):
    return round_to(sum(a == b for a, b in pairs) / len(pairs))


def leading(a, b):
    """Tokens before the first that differs."""
    return next((k for k, (x, y) in enumerate(zip(a, b)) if x != y), len(a))


def line(row):
    s = row["summary"]
    return (
        f"{row['case']:22} {row['depth']:6} {s['decode_tok_s']:8.1f} {s['gap_ms']:8.1f} {s['first_token_ms']:9.0f} "
        f"{row['memory']['peak'] / 2**20:7.0f} {100 * row['usage']['others_share']:5.0f}"
    )


def agreement_line(dtype, depth, found):
    return f"{dtype:22} {depth:>6}  answer {found['answer']:.3f}, prompt {found['prompt']:.3f}, leading {found['leading']}"


class Result(report.Result):
    what = "benches/peers/depth.py"
    key = ("case", "depth", "round")

    def __init__(self, path, model, seed):
        super().__init__(path, model, seed)
        self.agreement = self.before.get("agreement")

    def ratios(self):
        """Of decoding speed: of each round that has both sides, and their geometric mean."""
        speed = {(row["case"], row["depth"], row["round"]): row["summary"]["decode_tok_s"] for row in self.rows}
        depths, rounds = (sorted({row[key] for row in self.rows}) for key in ("depth", "round"))
        out = {}
        for name, (above, below) in RATIOS.items():
            for depth in depths:
                sides = [[speed.get((side, depth, n)) for side in (above, *below)] for n in rounds]
                ratios = [round_to(a / max(b)) for a, *b in sides if a and all(b)]
                if ratios:
                    out[f"{name}, {depth} tokens"] = {"ratio": round_to(statistics.geometric_mean(ratios)), "rounds": ratios}
        return out

    def head(self):
        return super().head() | ({"agreement": self.agreement} if self.agreement else {})

    def table(self):
        header = f"{'case':22} {'depth':>6} {'tok/s':>8} {'gap p50':>8} {'first':>9} {'MiB':>7} {'oth%':>5}"
        lines = [header, *map(line, self.rows), ""]
        lines += [f"{name:50} {r['ratio']:8.3f}  of {', '.join(map(str, r['rounds']))}" for name, r in self.ratios().items()]
        for dtype, depths in (self.agreement or {"by_type": {}})["by_type"].items():
            lines += [agreement_line(dtype, depth, found) for depth, found in depths.items()]
        return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("env", type=lambda p: pathlib.Path(p).resolve())
    parser.add_argument("--model", default="smollm2-135m", help="one that setup prepared")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--depths", default="128,2048,8064", help="tokens of the prompts")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of a request")
    parser.add_argument("--rounds", type=int, default=3, help="times that all cases are run, in turns")
    parser.add_argument("--first-round", type=int, default=0, help="its number, where the rounds are run in several calls")
    parser.add_argument("--agree", type=int, default=4, help="prompts of each depth on which ladle's types are compared; 0: none")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--port", type=int, default=18990)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.depths = sorted(int(depth) for depth in options.depths.split(","))
    options.context = max(WARM, options.depths[-1]) + options.tokens
    names = options.cases.split(",") if options.cases else []
    if unknown := set(names) - set(CASES):
        parser.error(f"--cases {','.join(sorted(unknown))}: there are {', '.join(CASES)}")
    base = options.env / "models" / options.model / "base"
    longest = json.loads((base / "config.json").read_text())["max_position_embeddings"]
    if options.context > longest:
        parser.error(f"--depths {options.depths[-1]}: with --tokens {options.tokens} at most {longest - options.tokens} of {options.model}")
    if options.depths[0] < 2:
        parser.error(f"--depths {options.depths[0]}: at least 2")
    text = Text(base)
    out = options.out or ROOT / "benches" / "results" / f"depth-{options.model}-{datetime.date.today()}-{machine.slug()}.json"
    result = Result(out, options.model, options.seed)
    for round in range(options.first_round, options.first_round + options.rounds):
        for name in names:
            say(f"== round {round + 1}, {name}")
            result.add(asyncio.run(measure(name, round, text, options)))
    if options.agree:
        result.agreement = asyncio.run(agreement(text, options))
        result.write()
    print(result.table())
    say(out)


if __name__ == "__main__":
    main()
