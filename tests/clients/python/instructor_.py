from typing import Literal

import instructor
import openai
from common import ASK, KEY, LONG, MODEL, SEED, URL, drives, is_dish, main
from pydantic import BaseModel, ConfigDict

client = openai.OpenAI(base_url=URL + "/v1", api_key=KEY, max_retries=0)
SAY = {"model": MODEL, "messages": ASK, "seed": SEED, "max_tokens": LONG, "max_retries": 0}


class Dish(BaseModel):
    """A dish."""

    model_config = ConfigDict(extra="forbid")
    vegan: bool
    course: Literal["soup", "salad", "cake"]


@drives("tools")
def tools():
    is_dish(instructor.from_openai(client, mode=instructor.Mode.TOOLS).create(response_model=Dish, **SAY).model_dump())


@drives("json_schema")
def schema():
    is_dish(instructor.from_openai(client, mode=instructor.Mode.JSON_SCHEMA).create(response_model=Dish, **SAY).model_dump())


@drives("partial objects of a stream")
def partial():
    structured = instructor.from_openai(client, mode=instructor.Mode.JSON_SCHEMA)
    *_, last = structured.create_partial(response_model=Dish, **SAY)
    is_dish(last.model_dump())


main("instructor")
