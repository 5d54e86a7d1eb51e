"""The requests that `vllm bench serve` sends, and what it reads of their answers, without installing vLLM."""

import json
import urllib.request

from common import MODEL, URL, drives, main, same

STREAM = {"stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True, "model": MODEL}
TOKENS = 12


def stream(path, body):
    """Text, chunks with a choice, and usage."""
    head = {"content-type": "application/json", "x-request-id": "bench-0"}
    request = urllib.request.Request(URL + path, json.dumps({**STREAM, **body}).encode(), head)
    text, chunks, usage = "", 0, None
    with urllib.request.urlopen(request) as answer:
        same(answer.headers["x-request-id"], "bench-0")
        for event in answer.read().decode().split("\n\n"):
            data = event.strip().removeprefix("data: ")
            if not data or data.startswith(":") or data == "[DONE]":
                continue
            data = json.loads(data)
            if choices := data.get("choices"):
                chunks += 1
                text += choices[0].get("text") or choices[0].get("delta", {}).get("content") or ""
            elif data.get("usage"):
                usage = data["usage"]
    same((usage["completion_tokens"], chunks > 1, bool(text)), (TOKENS, True, True))


@drives("openai: completions")
def completions():
    stream("/v1/completions", {"prompt": "The soup is", "repetition_penalty": 1.0, "max_tokens": TOKENS, "logprobs": None})


@drives("token ids as prompt")
def ids():
    stream("/v1/completions", {"prompt": [5, 6, 7], "repetition_penalty": 1.0, "max_tokens": TOKENS, "logprobs": None})


@drives("openai-chat: chat completions")
def chat():
    content = [{"type": "text", "text": "Name a dish."}]
    stream("/v1/chat/completions", {"messages": [{"role": "user", "content": content}], "max_completion_tokens": TOKENS})


@drives("--dataset structured outputs")
def structured():
    schema = {"type": "object", "properties": {"vegan": {"type": "boolean"}}, "required": ["vegan"]}
    body = {"model": MODEL, "prompt": "A dish:", "max_tokens": 60, "structured_outputs": {"json": schema}}
    request = urllib.request.Request(URL + "/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    answer = json.load(urllib.request.urlopen(request))["choices"][0]
    same(answer["finish_reason"] == "length" or "vegan" in json.loads(answer["text"]), True)


main("vllm", version="0.33")
