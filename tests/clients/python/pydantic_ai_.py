from typing import Literal

from common import ASK, KEY, LENGTH, LONG, MODEL, SEED, URL, drives, generated, is_dish, main, same
from pydantic import BaseModel, ConfigDict
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

QUESTION = ASK[0]["content"]
PROVIDER = OpenAIProvider(base_url=URL + "/v1", api_key=KEY)
CHAT = OpenAIChatModel(MODEL, provider=PROVIDER)
SAY = {"seed": SEED, "max_tokens": LENGTH}


class Dish(BaseModel):
    """A dish."""

    model_config = ConfigDict(extra="forbid")
    vegan: bool
    course: Literal["soup", "salad", "cake"]


@drives("text")
def text():
    same(Agent(CHAT).run_sync(QUESTION, model_settings=SAY).output, generated())


@drives("ToolOutput")
def by_tool():
    run = Agent(CHAT, output_type=ToolOutput(Dish)).run_sync(QUESTION, model_settings={**SAY, "max_tokens": LONG})
    is_dish(run.output.model_dump())


@drives("NativeOutput")
def native():
    run = Agent(CHAT, output_type=NativeOutput(Dish)).run_sync(QUESTION, model_settings={**SAY, "max_tokens": LONG})
    is_dish(run.output.model_dump())


@drives("streams")
def streams():
    told = Agent(CHAT).run_stream_sync(QUESTION, model_settings=SAY)
    same("".join(told.stream_text(delta=True, debounce_by=None)), generated())


@drives("responses")
def responses():
    agent = Agent(OpenAIResponsesModel(MODEL, provider=PROVIDER))
    run = agent.run_sync(QUESTION, model_settings={"max_tokens": LENGTH, "extra_body": {"seed": SEED}})
    same(run.output, generated())


main("pydantic-ai-slim")
