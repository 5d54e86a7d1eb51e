import json
from typing import Literal

import openai
from common import ASK, KEY, LENGTH, LONG, MODEL, PLACE, SCHEMA, SEED, URL, drives, generated, is_dish, main, post, same
from pydantic import BaseModel, ConfigDict

client = openai.OpenAI(base_url=URL + "/v1", api_key=KEY, max_retries=0)
FUNCTION = {"name": "weather", "description": "Weather of a city.", "parameters": PLACE}
TOOLS = [{"type": "function", "function": FUNCTION}]
FLAT = [{"type": "function", **FUNCTION, "strict": True}]
SAY = {"model": MODEL, "messages": ASK, "seed": SEED, "max_tokens": LENGTH}
CALL = {"model": MODEL, "messages": ASK, "tools": TOOLS, "max_tokens": LONG, "parallel_tool_calls": False}
RESPOND = {"model": MODEL, "input": ASK[0]["content"]}


class Dish(BaseModel):
    model_config = ConfigDict(extra="forbid")
    vegan: bool
    course: Literal["soup", "salad", "cake"]


@drives("chat")
def chat():
    answer = client.chat.completions.create(**SAY)
    same(answer.choices[0].message.content, generated())
    same(answer.usage.completion_tokens <= LENGTH, True)


@drives("streams")
def streams():
    chunks = list(client.chat.completions.create(**SAY, stream=True, stream_options={"include_usage": True}))
    same("".join(c.choices[0].delta.content or "" for c in chunks if c.choices), generated())
    same(chunks[-1].usage.total_tokens > 0, True)


@drives("preferences")
def preferences():
    terse = {"preference": {"brief": 1}}
    answer = client.chat.completions.create(**SAY, extra_body=terse)
    same(answer.choices[0].message.content, generated(**terse))
    by_model = client.chat.completions.create(**{**SAY, "model": f"{MODEL}:brief=1"})
    same(by_model.choices[0].message.content, generated(**terse))


@drives("completions")
def completions():
    body = {"prompt": "The soup is", "seed": SEED, "max_tokens": LENGTH}
    answer = client.completions.create(model=MODEL, **body, logprobs=2)
    same(answer.choices[0].text, post("/generate", body)["text"])
    stream = client.completions.create(model=MODEL, **body, stream=True)
    same("".join(chunk.choices[0].text for chunk in stream), answer.choices[0].text)


@drives("json_schema")
def json_schema():
    form = {"type": "json_schema", "json_schema": {"name": "dish", "schema": SCHEMA, "strict": True}}
    answer = client.chat.completions.create(**{**SAY, "max_tokens": LONG}, response_format=form)
    is_dish(json.loads(answer.choices[0].message.content))


@drives("parse")
def parse():
    answer = client.chat.completions.parse(**{**SAY, "max_tokens": LONG}, response_format=Dish)
    is_dish(answer.choices[0].message.parsed.model_dump())


@drives("tools, required and answered")
def tools():
    answer = client.chat.completions.create(**CALL, tool_choice="required")
    call = answer.choices[0].message.tool_calls[0]
    same(call.function.name, "weather")
    same(json.loads(call.function.arguments)["city"] in ("Oslo", "Rome"), True)
    turn = answer.choices[0].message.model_dump(exclude_none=True)
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    client.chat.completions.create(model=MODEL, messages=[*ASK, turn, result], max_tokens=4)


@drives("tools, named and streamed")
def named():
    choice = {"type": "function", "function": {"name": "weather"}}
    with client.chat.completions.stream(**CALL, tool_choice=choice) as stream:
        for _ in stream:
            pass
        call = stream.get_final_completion().choices[0].message.tool_calls[0]
    same(json.loads(call.function.arguments)["city"] in ("Oslo", "Rome"), True)


@drives("responses")
def responses():
    # This route has no seed of OpenAI's, but takes ladle's.
    body = {**RESPOND, "max_output_tokens": LENGTH, "extra_body": {"seed": SEED}}
    answer = client.responses.create(**body)
    same(answer.output_text, generated())
    events = list(client.responses.create(**body, stream=True))
    same("".join(e.delta for e in events if e.type == "response.output_text.delta"), answer.output_text)
    same(events[-1].response.output_text, answer.output_text)


@drives("responses.parse")
def responses_parse():
    is_dish(client.responses.parse(**RESPOND, text_format=Dish, max_output_tokens=LONG).output_parsed.model_dump())


@drives("responses with tools")
def responses_tools():
    body = {**RESPOND, "tools": FLAT, "tool_choice": "required", "parallel_tool_calls": False, "max_output_tokens": LONG}
    with client.responses.stream(**body) as stream:
        for _ in stream:
            pass
        call = stream.get_final_response().output[-1]
    same(json.loads(call.arguments)["city"] in ("Oslo", "Rome"), True)
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    sent = {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments}
    client.responses.create(model=MODEL, input=[*ASK, sent, output], max_output_tokens=4)


@drives("embeddings")
def embeddings():
    # Base64, which the library asks for and decodes by itself.
    whole = client.embeddings.create(model=MODEL, input=["a ladle", "a spoon"], extra_body={"pooling": "mean"})
    same([round(sum(x * x for x in one.embedding), 3) for one in whole.data], [1.0, 1.0])
    plain = post("/v1/embeddings", {"input": "a ladle", "pooling": "mean"})["data"][0]["embedding"]
    same(max(abs(x - y) for x, y in zip(plain, whole.data[0].embedding)) < 1e-3, True)


@drives("models")
def models():
    same(client.models.list().data[0].id, MODEL)
    same(client.models.retrieve(MODEL).owned_by, "ladle")


@drives("errors")
def errors():
    for more, param in [({"temperature": 9}, "temperature"), ({"extra_body": {"preference": {"x": 1}}}, "preference.x")]:
        try:
            client.chat.completions.create(**SAY, **more)
            raise AssertionError(f"{more} was taken")
        except openai.BadRequestError as error:
            same(error.param, param)
    try:
        client.responses.create(**RESPOND, previous_response_id="resp_1")
        raise AssertionError("previous_response_id was taken")
    except openai.BadRequestError as error:
        same(error.param, "previous_response_id")


main("openai")
