import json

import anthropic
from common import ASK, KEY, LENGTH, LONG, MODEL, PLACE, SCHEMA, SEED, URL, drives, generated, is_dish, main, post, same

client = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0)
SAY = {"model": MODEL, "messages": ASK, "max_tokens": LENGTH, "extra_body": {"seed": SEED}}
TOOL = {"name": "weather", "description": "Weather of a city.", "input_schema": PLACE}
CHOICE = {"type": "any", "disable_parallel_tool_use": True}
CALL = {"model": MODEL, "messages": ASK, "tools": [TOOL], "tool_choice": CHOICE, "max_tokens": LONG}


@drives("messages")
def messages():
    answer = client.messages.create(**SAY)
    same("".join(block.text for block in answer.content), generated())
    same(answer.stop_reason in ("end_turn", "max_tokens"), True)


@drives("streams")
def streams():
    with client.messages.stream(**SAY) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    same(text, generated())
    same(text, "".join(block.text for block in final.content))


@drives("system prompt")
def system():
    answer = client.messages.create(**SAY, system="Be brief.")
    expected = generated(messages=[{"role": "system", "content": "Be brief."}, *ASK])
    same("".join(block.text for block in answer.content), expected)


@drives("a last turn that is continued")
def prefill():
    turns = [*ASK, {"role": "assistant", "content": "It is"}]
    answer = client.messages.create(**{**SAY, "messages": turns})
    same(answer.content[0].text, generated(messages=turns, continue_final_message=True))


@drives("tools, called and answered")
def tools():
    answer = client.messages.create(**CALL)
    used = answer.content[-1]
    same((answer.stop_reason, used.name, used.input["city"] in ("Oslo", "Rome")), ("tool_use", "weather", True))
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": used.id, "content": "rain"}]}
    client.messages.create(model=MODEL, max_tokens=4, messages=[*ASK, {"role": "assistant", "content": answer.content}, result])


@drives("tools, streamed")
def streamed():
    with client.messages.stream(**CALL) as stream:
        final = stream.get_final_message()
    same(final.content[-1].input["city"] in ("Oslo", "Rome"), True)


@drives("output_config")
def structured():
    form = {"format": {"type": "json_schema", "schema": SCHEMA}}
    answer = client.messages.create(model=MODEL, messages=ASK, max_tokens=LONG, output_config=form)
    is_dish(json.loads(answer.content[0].text))


@drives("count_tokens")
def count():
    counted = client.messages.count_tokens(model=MODEL, messages=ASK).input_tokens
    same(counted, post("/tokenize", {"messages": ASK})["count"])


@drives("errors")
def errors():
    try:
        client.messages.create(model=MODEL, messages=ASK, max_tokens=-1)
        raise AssertionError("max_tokens -1 was taken")
    except anthropic.BadRequestError as error:
        same("max_tokens" in str(error), True)


main("anthropic")
