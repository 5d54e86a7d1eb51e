"""Compares vLLM with this resolver and ladle on the same soup: greedy answers to eight prompts under six
preferences, the corners with their negative coefficients among them.

    against_ladle.py VLLM LADLE NAME OBJECTIVE OBJECTIVE … [--tokens 24] [--tie 0.1]

VLLM and LADLE are the addresses of running servers, NAME the soup's. Two answers agree where their tokens are
the same up to the first place at which ladle holds both servers' tokens for equally likely, within --tie nats:
the two round differently, so a near tie may fall either way, and what follows it is another text. Prints JSON;
the status is 1 when an answer disagrees. Standard library only.
"""

import argparse
import itertools
import json
import sys
import urllib.error
import urllib.request

PROMPTS = [
    "Summarize in one sentence: Rivers carry sand to the sea, where waves sort it by weight.",
    "Summarize in one sentence: A cache keeps what was used last, because it is likely to be used again.",
    "Name three uses of copper.",
    "Why does bread rise?",
    "Explain to a child what a map is.",
    "Write a short note that cancels a meeting.",
    "What is the capital of Norway, and what is it known for?",
    "Give one reason for and one against night trains.",
]


def ask(url, model, prompt, tokens):
    """Token texts and, at each place, the log-probabilities of the likeliest."""
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens,
            "temperature": 0, "logprobs": True, "top_logprobs": 5}
    request = urllib.request.Request(
        f"{url.rstrip('/')}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            content = json.load(answer)["choices"][0]["logprobs"]["content"]
    except urllib.error.HTTPError as error:
        sys.exit(f"{url}, {model}: {error.read().decode(errors='replace')}")
    return [(place["token"], {one["token"]: one["logprob"] for one in place["top_logprobs"]}) for place in content]


def verdict(theirs, ours, tie):
    """`same`, `tie` with its gap in nats, or `different` with the place, the tokens and the gap (infinite where
    ladle has their token not among its five likeliest)."""
    for place, ((their, _), (our, likeliest)) in enumerate(zip(theirs, ours)):
        if their != our:
            gap = likeliest[our] - likeliest.get(their, float("-inf"))
            return ("tie", gap) if gap <= tie else ("different", [place, their, our, gap])
    return ("same", 0.0) if len(theirs) == len(ours) else ("different", [len(theirs), len(ours)])


def preferences(objectives):
    """Equal weights, each corner, and mixes."""
    corners = [[float(i == j) for j in range(len(objectives))] for i in range(len(objectives))]
    mixes = [[1.0 + i * k for i in range(len(objectives))] for k in (0, 1)] + [[4.0] + [1.0] * (len(objectives) - 1)]
    return (corners + mixes)[:6]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vllm")
    parser.add_argument("ladle")
    parser.add_argument("name")
    parser.add_argument("objectives", nargs="+")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--tie", type=float, default=0.1)
    args = parser.parse_args()
    found = {"same": 0, "tie": 0, "different": 0}
    largest, different = 0.0, []
    for weights, prompt in itertools.product(preferences(args.objectives), PROMPTS):
        model = f"{args.name}:" + ",".join(f"{name}={weight:g}" for name, weight in zip(args.objectives, weights))
        theirs, ours = (ask(url, model, prompt, args.tokens) for url in (args.vllm, args.ladle))
        kind, detail = verdict(theirs, ours, args.tie)
        found[kind] += 1
        if kind == "tie":
            largest = max(largest, detail)
        if kind == "different":
            different.append([model, prompt, detail])
        print(model, prompt[:30], kind, detail, file=sys.stderr)
    print(json.dumps({**found, "largest tie": round(largest, 4), "where": different}, indent=1))
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
