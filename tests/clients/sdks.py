"""Drives the official Python clients of OpenAI and Anthropic, unmodified, against a ladle server.

    python tests/clients/sdks.py http://127.0.0.1:8080 [KEY]

The server's model must have a chat template; where it has a place for tools, they are called too.
Written against openai 3.54 and anthropic 2.14. Prints a line for each thing that works; exits with
an error at the first that does not.
"""

import json
import sys

import anthropic
import openai
from pydantic import BaseModel

BASE = sys.argv[1].rstrip("/")
KEY = sys.argv[2] if len(sys.argv) > 2 else "none"
CHAT = openai.OpenAI(base_url=BASE + "/v1", api_key=KEY, max_retries=0)
CLAUDE = anthropic.Anthropic(base_url=BASE, api_key=KEY, max_retries=0)
MODEL = CHAT.models.list().data[0].id
ASK = [{"role": "user", "content": "Which dish is it?"}]
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"], "additionalProperties": False}


class Dish(BaseModel):
    vegan: bool
    spoons: int


def works(what):
    print("works:", what)


def openai_chat():
    answer = CHAT.chat.completions.create(model=MODEL, messages=ASK, max_tokens=8)
    assert answer.choices[0].message.role == "assistant" and answer.usage.completion_tokens <= 8
    works("openai chat")
    stream = CHAT.chat.completions.create(model=MODEL, messages=ASK, max_tokens=8, stream=True)
    assert [chunk for chunk in stream][-1].choices[0].finish_reason in ("stop", "length")
    works("openai chat stream")
    schema = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}
    answer = CHAT.chat.completions.create(model=MODEL, messages=ASK, max_tokens=100, response_format=schema, seed=1)
    assert json.loads(answer.choices[0].message.content)["city"] in ("Oslo", "Rome")
    works("openai chat json_schema")
    parsed = CHAT.chat.completions.parse(model=MODEL, messages=ASK, response_format=Dish, seed=3, max_tokens=200)
    assert isinstance(parsed.choices[0].message.parsed, Dish)
    works("openai chat parse")


def openai_responses():
    answer = CHAT.responses.create(model=MODEL, input="Hello", max_output_tokens=8, store=False)
    assert answer.output_text is not None and answer.usage.output_tokens <= 8
    works("openai responses")
    kinds = [event.type for event in CHAT.responses.create(model=MODEL, input="Hello", max_output_tokens=8, stream=True)]
    assert kinds[0] == "response.created" and kinds[-1] in ("response.completed", "response.incomplete"), kinds
    works("openai responses stream")
    # The helper wants an answer that comes to its end.
    place = {"format": {"type": "json_schema", "name": "place", "schema": SCHEMA}}
    with CHAT.responses.stream(model=MODEL, input="Hello", max_output_tokens=120, text=place) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert stream.get_final_response().output_text == text
    works("openai responses stream helper")
    parsed = CHAT.responses.parse(model=MODEL, input="A dish", text_format=Dish, max_output_tokens=200)
    assert isinstance(parsed.output_parsed, Dish)
    works("openai responses parse")
    try:
        CHAT.responses.create(model=MODEL, input="x", previous_response_id="resp_1")
        raise AssertionError("previous_response_id was taken")
    except openai.BadRequestError as error:
        assert error.param == "previous_response_id"
    works("openai responses refuse previous_response_id")


def openai_tools():
    function = {"name": "weather", "description": "Weather of a city.", "parameters": SCHEMA}
    tools = [{"type": "function", "function": function}]
    ask = {"model": MODEL, "messages": ASK, "tools": tools, "max_tokens": 120, "seed": 2, "parallel_tool_calls": False}
    try:
        answer = CHAT.chat.completions.create(**ask, tool_choice="required")
    except openai.BadRequestError as error:
        assert error.param == "tools", error
        print("without: tools (the chat template has no place for them)")
        return False
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "weather" and json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")
    works("openai tools required")
    turns = ASK + [answer.choices[0].message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    CHAT.chat.completions.create(model=MODEL, messages=turns, max_tokens=4)
    works("openai tools answered")
    with CHAT.chat.completions.stream(**ask, tool_choice={"type": "function", "function": {"name": "weather"}}) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_completion().choices[0].message.tool_calls[0]
    assert json.loads(streamed.function.arguments)["city"] in ("Oslo", "Rome")
    works("openai tools stream helper")
    flat = [{"type": "function", **function, "strict": True}]
    answer = CHAT.responses.create(model=MODEL, input="x", tools=flat, tool_choice="required", parallel_tool_calls=False, max_output_tokens=120)
    call = answer.output[-1]
    assert call.type == "function_call" and json.loads(call.arguments)["city"]
    back = [{"role": "user", "content": "x"}, call.model_dump(), {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}]
    CHAT.responses.create(model=MODEL, input=back, max_output_tokens=4)
    works("openai responses tools")
    return True


def anthropic_messages(tools):
    ask = {"model": MODEL, "max_tokens": 8, "messages": ASK}
    answer = CLAUDE.messages.create(**ask, system="Be brief.")
    assert answer.role == "assistant" and answer.stop_reason in ("end_turn", "max_tokens") and answer.usage.output_tokens <= 8
    works("anthropic messages")
    with CLAUDE.messages.stream(**ask) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == "".join(block.text for block in final.content)
    works("anthropic stream helper")
    assert CLAUDE.messages.count_tokens(model=MODEL, messages=ASK).input_tokens > 0
    works("anthropic count_tokens")
    prefilled = CLAUDE.messages.create(**{**ask, "messages": ASK + [{"role": "assistant", "content": "It is"}]})
    assert prefilled.content
    works("anthropic prefill")
    try:
        CLAUDE.messages.create(**{**ask, "max_tokens": -1})
        raise AssertionError("max_tokens -1 was taken")
    except anthropic.BadRequestError as error:
        assert "max_tokens" in str(error)
    works("anthropic errors")
    if not tools:
        return
    tool = {"name": "weather", "description": "Weather of a city.", "input_schema": SCHEMA}
    call = {"tools": [tool], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}, "max_tokens": 120}
    answer = CLAUDE.messages.create(**{**ask, **call})
    used = answer.content[-1]
    assert answer.stop_reason == "tool_use" and used.input["city"] in ("Oslo", "Rome"), answer
    result = [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": used.id, "content": "rain"}]}]
    CLAUDE.messages.create(**{**ask, "messages": ASK + [{"role": "assistant", "content": answer.content}] + result})
    works("anthropic tools")
    with CLAUDE.messages.stream(**{**ask, **call}) as stream:
        final = stream.get_final_message()
    assert final.content[-1].input["city"] in ("Oslo", "Rome")
    works("anthropic tools stream helper")


def main():
    openai_chat()
    openai_responses()
    anthropic_messages(openai_tools())


if __name__ == "__main__":
    main()
