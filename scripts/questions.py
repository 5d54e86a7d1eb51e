"""What scripts/soak asks: repeatable questions of every route, what their answers tell whether whole or
streamed, and hostile bodies."""

import json

PROMPTS = [
    "The soup is",
    "Once upon a time a cook wrote a long recipe, and it began",
    "é▁ 漢字 \u200d👩‍🍳 of",
    "a",
    "word " * 40,
]
ODD = [None, True, -1, 0, 1e308, 2**64, -(2**63), "", "NaN", [], {}, [[]], "x" * 500, [None], {"": {}}]


def preference(draw, soup):
    names = [objective["name"] for objective in soup["objectives"]]
    weights = [round(draw.random(), 2) for _ in names]
    weights[draw.randrange(len(names))] = 1
    return draw.choice([dict(zip(names, weights)), weights, draw.choice(list(soup["presets"]))])


def sampling(draw):
    if draw.random() < 0.4:
        return {"temperature": 0}
    fields = {"temperature": round(0.5 + draw.random(), 2), "seed": draw.randrange(1000)}
    more = [{"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.05}, {"repetition_penalty": 1.2}, {}]
    return {**fields, **draw.choice(more)}


def common(draw, soup):
    fields = {
        "preference": preference(draw, soup),
        "max_tokens": draw.randrange(1, 40),
        "ignore_eos": True,
        **sampling(draw),
    }
    if draw.random() < 0.3:
        fields["alpha"] = round(draw.random(), 1)
    if draw.random() < 0.3:
        fields["stop"] = draw.choice(["e", "of", ["qu", " a"]])
    if draw.random() < 0.3:
        fields["priority"] = draw.randrange(-5, 5)
    return fields


def messages(draw):
    return [{"role": "user", "content": draw.choice(PROMPTS)}]


def question(draw, soup, path):
    body, prompt = common(draw, soup), draw.choice(PROMPTS)
    if path == "/generate":
        body["prompt"] = prompt
        kind = draw.randrange(5)
        if kind == 0:
            del body["preference"]
            body["preferences"] = [preference(draw, soup) for _ in range(3)]
        elif kind == 1:
            body.pop("alpha", None)
            body["combine"] = "logits"
        elif kind == 2:
            body["logprobs"] = 2
        elif kind == 3:
            body.update(n=3, seed=draw.randrange(1000), temperature=1)
        else:
            del body["ignore_eos"]
            body["guided_regex"] = "[a-d ]{5,30}"
    elif path == "/v1/completions":
        body.update(prompt=[prompt, "The"], logprobs=1, echo=draw.random() < 0.5)
    elif path == "/v1/chat/completions":
        body.update(messages=messages(draw), logprobs=True, top_logprobs=1)
    elif path == "/v1/messages":
        body.update(messages=messages(draw), stop_sequences=["zz"])
        body.pop("stop", None)
    elif path == "/v1/responses":
        body.update(input=prompt, max_output_tokens=body.pop("max_tokens"))
        body.pop("stop", None)
    else:
        return {"path": path, "body": {"input": [prompt, "a"], "preference": body["preference"]},
                "streams": False}
    return {"path": path, "body": body, "streams": True}


PATHS = ["/generate", "/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses",
         "/v1/embeddings"]


def questions(draw, soup, rounds=10):
    return [question(draw, soup, path) for _ in range(rounds) for path in PATHS]


def read(stream):
    """The events of a stream: pairs of name and data."""
    events = []
    for event in stream.decode().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in event.splitlines() if ": " in line)
        if "data" in lines and lines["data"] != "[DONE]":
            events.append((lines.get("event", ""), json.loads(lines["data"])))
    return events


def told(question, answer):
    """What an answer says, the same for a whole one and for the events of a stream."""
    path = question["path"]
    if path == "/v1/embeddings":
        return [item["embedding"] for item in answer["data"]]
    if path == "/generate":
        return native(answer)
    if path in ("/v1/completions", "/v1/chat/completions"):
        return openai(answer)
    return responses(answer) if path == "/v1/responses" else anthropic(answer)


def native(answer):
    if isinstance(answer, dict):
        choices = answer.get("choices") or [answer]
        texts = [
            {"text": choice["text"], "tokens": choice.get("tokens"), "end": choice["finish_reason"]}
            for choice in choices
        ]
        return {"choices": texts, "used": answer["usage"]["completion_tokens"]}
    whole = native(answer[-1][1])
    # What the pieces add up to must be what the last event says.
    for index, choice in enumerate(whole["choices"]):
        pieces = [data for name, data in answer if name == "token" and data["index"] == index]
        choice["text"] = "".join(piece["text"] for piece in pieces)
        if choice["tokens"] is not None:
            choice["tokens"] = [piece["token"] for piece in pieces]
    return whole


def openai(answer):
    whole = isinstance(answer, dict)
    found = {}
    for part in [answer] if whole else [data for _, data in answer]:
        for choice in part["choices"]:
            into = found.setdefault(choice["index"], {"text": "", "tokens": [], "end": None})
            content = choice.get("message") or choice.get("delta") or choice
            into["text"] += content.get("content") or content.get("text") or ""
            marks = choice.get("logprobs") or {}
            into["tokens"] += marks.get("content") or list(
                zip(marks.get("tokens", []), marks.get("token_logprobs", []))
            )
            into["end"] = choice["finish_reason"] or into["end"]
    return [found[index] for index in sorted(found)]


def responses(answer):
    if isinstance(answer, dict):
        text = "".join(part["text"] for item in answer["output"] for part in item["content"])
        return {"text": text, "end": answer["status"], "used": answer["usage"]["output_tokens"]}
    deltas = [data["delta"] for name, data in answer if name == "response.output_text.delta"]
    numbers = [data["sequence_number"] for _, data in answer]
    whole = responses(answer[-1][1]["response"])
    in_order = numbers == list(range(len(numbers)))
    return {**whole, "text": "".join(deltas) if in_order else numbers}


def anthropic(answer):
    if isinstance(answer, dict):
        text = "".join(block["text"] for block in answer["content"])
        return {"text": text, "end": answer["stop_reason"], "used": answer["usage"]["output_tokens"]}
    deltas = [data["delta"]["text"] for name, data in answer if name == "content_block_delta"]
    end = next(data for name, data in answer if name == "message_delta")
    used = end["usage"]["output_tokens"]
    return {"text": "".join(deltas), "end": end["delta"]["stop_reason"], "used": used}


def hostile(draw, asked):
    """A path and a body that a server may only refuse or answer."""
    chosen = draw.choice(asked)
    body, kind = dict(chosen["body"]), draw.randrange(8)
    if kind == 0:
        body[draw.choice(list(body))] = draw.choice(ODD)
    elif kind == 1:
        body[f"field{draw.randrange(100)}"] = draw.choice(ODD)
    elif kind == 2:
        return chosen["path"], b"[" * draw.choice([10, 1000, 100_000])
    elif kind == 3:
        return chosen["path"], draw.randbytes(draw.randrange(300))
    elif kind == 4:
        body["prompt"] = "word " * draw.choice([1000, 20_000, 400_000])
    elif kind == 5:
        return draw.choice(["/v1/nothing", "/metrics", "//", "/v1/models/x"]), b"{}"
    encoded = bytearray(json.dumps(body).encode())
    if kind > 5:
        for _ in range(draw.randrange(1, 4)):
            encoded[draw.randrange(len(encoded))] = draw.randrange(256)
        if draw.random() < 0.5:
            del encoded[draw.randrange(len(encoded)) :]
    return chosen["path"], bytes(encoded)
