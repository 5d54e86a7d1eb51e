"""The load: seeded prompts and preferences, clients that stream, and what is measured of them."""

import asyncio
import itertools
import json
import math
import random
import time

import aiohttp

OBJECTIVES = ["helpful", "harmless", "brief"]
BETA = 0.7
MIXES = 16
SENTENCES = [
    "Training large neural networks needs much memory, which keeps small groups from doing it at all.",
    "We study a method that stores activations in eight bits and recomputes the rest when it is needed.",
    "On three image data sets the method halves memory use and keeps accuracy within half a percent.",
    "Robots that learn from people must cope with demonstrations whose quality varies from day to day.",
    "We propose to weight every demonstration by how well it predicts the others of the same task.",
    "In simulated and real grasping tasks the robot then succeeds in nine of ten trials.",
    "Graph networks often fail when nodes of one class rarely touch each other in the graph.",
    "A simple change of the aggregation step, which keeps a node apart from its neighbours, repairs it.",
    "Question answering systems give confident answers even when the text does not hold one.",
    "We collect twelve thousand questions without answers and train a model to abstain from them.",
    "Rivers carry more sediment after a fire, and nobody knows how long the effect lasts downstream.",
    "We measured twenty rivers over ten years and found that half of the effect is gone after three.",
]


def prompt(index, seed):
    """About 100 tokens of plain English. Its first words differ for every index, so no two prompts
    have a prefix in common that a server could keep."""
    rng = random.Random(f"{seed} {index}")
    return f"{rng.randrange(10**5)}. {' '.join(rng.sample(SENTENCES, 5))}\n\nIn one sentence:"


def prompts(first, seed):
    """Prompts from number `first` on."""
    return (prompt(index, seed) for index in itertools.count(first))


def preference(index, seed):
    """Weights of the objectives, uniform on the simplex, with four digits."""
    rng = random.Random(f"{seed} mix {index}")
    weights = [rng.expovariate(1) for _ in OBJECTIVES]
    return [round(w / sum(weights), 4) + 1e-4 for w in weights]


def coefficients(weights):
    """lambda = B^-1 mu for the circulant B of BETA: what servers that take scales are given."""
    total, n = sum(weights), len(weights)
    off = (1 - BETA) / (n - 1)
    return [(w / total - off) / (BETA - off) for w in weights]


class Answer:
    """One request: when it was sent and when which bytes came, in seconds since the run began."""

    def __init__(self, client, mix):
        self.client, self.mix = client, mix
        self.sent = self.end = 0.0
        self.chunks, self.error = [], None

    def events(self):
        """(time, JSON) of each `data:` line."""
        buffer = b""
        for at, chunk in self.chunks:
            buffer += chunk
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                if line.startswith(b"data:") and line.strip() != b"data: [DONE]":
                    yield at, json.loads(line[5:])


class Run:
    """Clients of one server. Nothing is parsed while requests run: the client shares the cores."""

    def __init__(self, session, server, seed, prompts):
        self.session, self.server, self.seed = session, server, seed
        self.answers, self.zero, self.prompts = [], time.perf_counter(), prompts

    def now(self):
        return time.perf_counter() - self.zero

    async def ask(self, client, mix, tokens, on_chunk=None):
        """Sends one request with the next prompt, keeps its answer."""
        answer = Answer(client, mix)
        self.answers.append(answer)
        path, body = self.server.request(next(self.prompts), mix, tokens, self.seed)
        answer.sent = self.now()
        try:
            async with self.session.post(self.server.url + path, json=body) as response:
                async for chunk in response.content.iter_any():
                    answer.chunks.append((self.now(), chunk))
                    if on_chunk:
                        on_chunk(len(answer.chunks))
                if response.status != 200:
                    answer.error = f"{response.status}: {answer.chunks[-1:]}"
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            answer.error = repr(error)
        answer.end = self.now()
        return answer

    async def closed_loop(self, clients, each, tokens, mix_of):
        """`clients` clients, each sending `each` requests one after another."""

        async def one(client):
            for _ in range(each):
                await self.ask(client, mix_of(client), tokens)

        await asyncio.gather(*map(one, range(clients)))

    async def arrivals(self, running, arriving, mix_of, interval=0.15, tokens=32, long=320):
        """`running` requests of one preference are decoding; then `arriving` others come."""
        started = asyncio.Event()
        counts = {}

        def count(client):
            def on_chunk(n):
                counts[client] = n
                if len(counts) == running and min(counts.values()) > 16:
                    started.set()

            return on_chunk

        background = [
            asyncio.create_task(self.ask(c, 0, long, count(c))) for c in range(running)
        ]
        await started.wait()
        begin, tasks = self.now(), []
        for k in range(arriving):
            tasks.append(asyncio.create_task(self.ask(running + k, mix_of(k), tokens)))
            await asyncio.sleep(interval)
        await asyncio.gather(*tasks)
        window = (begin, self.now())
        await asyncio.gather(*background)
        return window


def percentile(values, q):
    """Nearest rank; None of nothing."""
    values = sorted(values)
    return values[max(0, math.ceil(q / 100 * len(values)) - 1)] if values else None


def spread(values):
    """p50, p99 and the largest of seconds, in ms."""
    return {
        name: None if not values else round(1e3 * value, 2)
        for name, value in (
            ("p50", percentile(values, 50)), ("p99", percentile(values, 99)), ("max", max(values, default=None)),
        )
    }


def read(answer, server):
    """An answer as it is kept: times in ms; `gaps` from token to token."""
    times, text, tokens, prompt_tokens, info = [], "", 0, 0, None
    for at, event in answer.events():
        part = server.read(event)
        if part.get("text"):
            times.append(at)
            text += part["text"]
        tokens, prompt_tokens = part.get("tokens", tokens), part.get("prompt", prompt_tokens)
        info, answer.error = part.get("info", info), part.get("error", answer.error)
    kept = {
        "client": answer.client, "mix": answer.mix, "sent": round(1e3 * answer.sent, 1),
        "first": round(1e3 * (times[0] - answer.sent), 1) if times else None,
        "end": round(1e3 * answer.end, 1), "tokens": tokens, "prompt": prompt_tokens,
        "gaps": [round(1e3 * (b - a), 1) for a, b in zip(times, times[1:])], "text": text[:48],
    }
    return kept | ({"info": info} if info else {}) | ({"error": answer.error} if answer.error else {})


def summary(requests):
    """Throughput and latencies of the requests of one run."""
    good = [r for r in requests if "error" not in r and r["first"] is not None]
    if not good:
        return {"errors": len(requests)}
    wall = (max(r["end"] for r in good) - min(r["sent"] for r in good)) / 1e3
    return {
        "output_tok_s": round(sum(r["tokens"] for r in good) / wall, 2),
        "first_token_ms": spread([r["first"] / 1e3 for r in good]),
        "gap_ms": spread([g / 1e3 for r in good for g in r["gaps"]]),
        "prompt_tokens": percentile([r["prompt"] for r in good], 50),
        "output_tokens": sum(r["tokens"] for r in good),
        "wall_s": round(wall, 3),
        "errors": len(requests) - len(good),
    }
