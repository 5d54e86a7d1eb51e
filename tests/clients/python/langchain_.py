from typing import Literal

from common import ASK, KEY, LENGTH, LONG, MODEL, SEED, URL, drives, generated, is_dish, main, post, same
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, ConfigDict

QUESTION = ASK[0]["content"]


def model(length, **more):
    return ChatOpenAI(model=MODEL, base_url=URL + "/v1", api_key=KEY, seed=SEED, max_tokens=length, max_retries=0, **more)


class Dish(BaseModel):
    """A dish."""

    model_config = ConfigDict(extra="forbid")
    vegan: bool
    course: Literal["soup", "salad", "cake"]


class Place(BaseModel):
    model_config = ConfigDict(extra="forbid")
    city: Literal["Oslo", "Rome"]


@tool(args_schema=Place)
def weather(city: Literal["Oslo", "Rome"]) -> str:
    """Weather of a city."""
    return f"rain in {city}"


@drives("invoke")
def invoke():
    same(model(LENGTH).invoke(QUESTION).content, generated())


@drives("stream")
def stream():
    same("".join(chunk.content for chunk in model(LENGTH).stream(QUESTION)), generated())


@drives("with_structured_output by json_schema")
def by_schema():
    is_dish(model(LONG).with_structured_output(Dish, method="json_schema").invoke(QUESTION).model_dump())


@drives("by function_calling")
def by_call():
    is_dish(model(LONG).with_structured_output(Dish, method="function_calling").invoke(QUESTION).model_dump())


@drives("by json_mode")
def by_mode():
    # Any object: the one that ends as soon as it may.
    end = post("/tokenize", {"prompt": "}", "add_special": False})["tokens"][0]
    answer = model(LONG, logit_bias={end: 100}).with_structured_output(method="json_mode", schema=None)
    same(answer.invoke("Answer in JSON."), {})


@drives("bind_tools")
def bind():
    answer = model(LONG).bind_tools([weather], tool_choice="any", strict=True, parallel_tool_calls=False).invoke(QUESTION)
    call = answer.tool_calls[0]
    same((call["name"], call["args"]["city"] in ("Oslo", "Rome")), ("weather", True))
    result = weather.invoke(call)
    same(model(4).bind_tools([weather]).invoke([("user", QUESTION), answer, result]).content is not None, True)


@drives("responses")
def responses():
    chat = ChatOpenAI(model=MODEL, base_url=URL + "/v1", api_key=KEY, use_responses_api=True, extra_body={"seed": SEED}, max_tokens=LENGTH)
    same(chat.invoke(QUESTION).text, generated())


@drives("embeddings")
def embeddings():
    embed = OpenAIEmbeddings(model=MODEL, base_url=URL + "/v1", api_key=KEY, check_embedding_ctx_length=False)
    got = embed.embed_documents(["a ladle", "a spoon"])
    want = [one["embedding"] for one in post("/v1/embeddings", {"input": ["a ladle", "a spoon"]})["data"]]
    same(max(abs(x - y) for a, b in zip(got, want) for x, y in zip(a, b)) < 1e-3, True)


main("langchain-openai")
