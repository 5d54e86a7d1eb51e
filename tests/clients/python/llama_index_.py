from typing import Literal

from common import ASK, KEY, LENGTH, LONG, MODEL, SEED, URL, drives, generated, is_dish, main, same
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, ConfigDict

TURNS = [ChatMessage(role="user", content=ASK[0]["content"])]


def model(length, **more):
    return OpenAILike(
        model=MODEL, api_base=URL + "/v1", api_key=KEY, is_chat_model=True, is_function_calling_model=True,
        context_window=4096, max_tokens=length, temperature=1, max_retries=0, additional_kwargs={"seed": SEED}, **more,
    )


class Dish(BaseModel):
    """A dish."""

    model_config = ConfigDict(extra="forbid")
    vegan: bool
    course: Literal["soup", "salad", "cake"]


class Place(BaseModel):
    model_config = ConfigDict(extra="forbid")
    city: Literal["Oslo", "Rome"]


def weather(city: Literal["Oslo", "Rome"]) -> str:
    """Weather of a city."""
    return f"rain in {city}"


@drives("chat")
def chat():
    same(model(LENGTH).chat(TURNS).message.content, generated())


@drives("streams")
def streams():
    same("".join(part.delta or "" for part in model(LENGTH).stream_chat(TURNS)), generated())


@drives("a structured LLM by a tool")
def structured():
    is_dish(model(LONG).as_structured_llm(Dish).chat(TURNS).raw.model_dump())


@drives("a structured LLM by a schema")
def by_schema():
    is_dish(model(LONG, should_use_structured_outputs=True).as_structured_llm(Dish).chat(TURNS).raw.model_dump())


@drives("tools")
def tools():
    tool = FunctionTool.from_defaults(fn=weather, fn_schema=Place)
    answer = model(LONG).chat_with_tools([tool], chat_history=TURNS, tool_required=True)
    call = model(LONG).get_tool_calls_from_response(answer)[0]
    same((call.tool_name, call.tool_kwargs["city"] in ("Oslo", "Rome")), ("weather", True))


main("llama-index-llms-openai-like")
