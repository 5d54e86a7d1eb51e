import json
from typing import Literal

import litellm
from common import ASK, KEY, LENGTH, LONG, MODEL, PLACE, SEED, URL, drives, generated, is_dish, main, post, same
from pydantic import BaseModel, ConfigDict

AT = {"model": f"openai/{MODEL}", "api_base": URL + "/v1", "api_key": KEY}
SAY = {**AT, "messages": ASK, "seed": SEED, "max_tokens": LENGTH}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Weather.", "parameters": PLACE}}]


class Dish(BaseModel):
    model_config = ConfigDict(extra="forbid")
    vegan: bool
    course: Literal["soup", "salad", "cake"]


@drives("completion")
def chat():
    same(litellm.completion(**SAY).choices[0].message.content, generated())


@drives("streams")
def streams():
    chunks = litellm.completion(**SAY, stream=True)
    same("".join(chunk.choices[0].delta.content or "" for chunk in chunks), generated())


@drives("preferences")
def preferences():
    terse = {"preference": {"brief": 1}}
    same(litellm.completion(**SAY, extra_body=terse).choices[0].message.content, generated(**terse))


@drives("response_format")
def structured():
    answer = litellm.completion(**{**SAY, "max_tokens": LONG}, response_format=Dish)
    is_dish(json.loads(answer.choices[0].message.content))


@drives("tools")
def tools():
    answer = litellm.completion(**{**SAY, "max_tokens": LONG}, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    call = answer.choices[0].message.tool_calls[0]
    same((call.function.name, json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")), ("weather", True))


@drives("text_completion")
def text():
    body = {"prompt": "The soup is", "seed": SEED, "max_tokens": LENGTH}
    at = {**AT, "model": f"text-completion-openai/{MODEL}"}
    same(litellm.text_completion(**at, **body).choices[0].text, post("/generate", body)["text"])


@drives("embedding")
def embedding():
    got = litellm.embedding(**AT, input=["a ladle"]).data[0]["embedding"]
    want = post("/v1/embeddings", {"input": "a ladle"})["data"][0]["embedding"]
    same(max(abs(x - y) for x, y in zip(got, want)) < 1e-3, True)


@drives("responses")
def responses():
    answer = litellm.responses(**AT, input=ASK[0]["content"], max_output_tokens=LENGTH, extra_body={"seed": SEED})
    same(answer.output[0].content[0].text, generated())


@drives("Anthropic's messages")
def messages():
    at = {"model": f"anthropic/{MODEL}", "api_base": URL, "api_key": KEY}
    # Without a seed, which Anthropic's API does not have.
    answer = litellm.completion(**at, messages=ASK, max_tokens=LENGTH, temperature=0)
    same(answer.choices[0].message.content, generated(temperature=0))


main("litellm")
