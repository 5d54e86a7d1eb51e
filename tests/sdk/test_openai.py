"""The official OpenAI client, unmodified, against a running server.

    python test_openai.py BASE_URL API_KEY

Prints one line per check; exits with 1 and the traceback at the first that fails.
"""

import sys
import time
import urllib.request

import openai

URL, KEY = sys.argv[1:3]
MODEL = "soup-tiny"
client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0, timeout=60)
GREEDY = dict(max_tokens=8, temperature=0, extra_body={"ignore_eos": True})
HELLO = [{"role": "user", "content": "Hello"}]


def fails(kind, **arguments):
    try:
        client.chat.completions.create(**{"model": MODEL, "messages": HELLO, **arguments})
    except kind as error:
        return error
    raise AssertionError(f"expected {kind.__name__}")


def chat():
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, **GREEDY)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8
    return answer.choices[0].message.content


def streaming_with_usage():
    whole = chat()
    stream = client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}, **GREEDY
    )
    text, usage = "", None
    for chunk in stream:
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
        usage = chunk.usage or usage
    assert text == whole, (text, whole)
    assert usage.completion_tokens == 8


def extra_body_preference():
    body = {"ignore_eos": True, "preference": {"brief": 0.8, "helpful": 0.2}, "alpha": 0.5}
    answer = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=4, temperature=0, extra_body=body
    )
    assert answer.ladle["preference"] == {"helpful": 0.2, "harmless": 0.0, "brief": 0.8}
    assert answer.ladle["alpha"] == 0.5
    assert abs(sum(answer.ladle["coefficients"].values()) - 1) < 1e-9


def model_id_and_header_preference():
    by_model = client.chat.completions.create(model=f"{MODEL}:terse", messages=HELLO, **GREEDY)
    by_header = client.chat.completions.create(
        model=MODEL, messages=HELLO, extra_headers={"X-Preference": "helpful=0.2,brief=0.8"}, **GREEDY
    )
    assert by_model.ladle["preference"]["brief"] == 0.8
    assert by_model.choices[0].message.content == by_header.choices[0].message.content


def choices_seeds_and_log_probabilities():
    arguments = dict(model=MODEL, messages=HELLO, max_tokens=6, temperature=1.2, seed=3, n=2)
    one = client.chat.completions.create(**arguments, logprobs=True, top_logprobs=2)
    two = client.chat.completions.create(**arguments)
    assert [c.message.content for c in one.choices] == [c.message.content for c in two.choices]
    assert len(one.choices[0].logprobs.content[0].top_logprobs) == 2


def completions():
    answer = client.completions.create(
        model=MODEL, prompt=["The soup is", "A spoon"], echo=True, logprobs=1, **GREEDY
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].text.startswith("The soup is")
    table = answer.choices[0].logprobs
    assert len(table.tokens) == len(table.token_logprobs) == len(table.text_offset)
    stream = client.completions.create(model=MODEL, prompt="The soup is", stream=True, **GREEDY)
    text = "".join(chunk.choices[0].text for chunk in stream if chunk.choices)
    assert "The soup is" + text == answer.choices[0].text


def models():
    names = [model.id for model in client.models.list()]
    assert names[0] == MODEL and f"{MODEL}:terse" in names, names
    assert client.models.retrieve(MODEL).owned_by == "ladle"


def errors():
    error = fails(openai.BadRequestError, extra_body={"preference": {"funny": 1}})
    assert error.param == "preference.funny" and error.code == "invalid_value", error
    assert "helpful, harmless, brief" in error.message
    assert fails(openai.BadRequestError, temperature=9).param == "temperature"
    assert fails(openai.NotFoundError, model="gpt-4").code == "model_not_found"
    stranger = client.with_options(api_key="not-a-key")
    try:
        stranger.models.list()
    except openai.AuthenticationError as error:
        assert error.status_code == 401 and error.code == "invalid_api_key"
    else:
        raise AssertionError("a wrong key was accepted")
    assert chat()


def a_client_that_leaves_frees_its_work():
    stream = client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, max_tokens=200, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    end = time.monotonic() + 30
    while b"ladle_requests_running 0\n" not in urllib.request.urlopen(f"{URL}/metrics").read():
        assert time.monotonic() < end, "the work of a client that left goes on"


for check in [
    chat,
    streaming_with_usage,
    extra_body_preference,
    model_id_and_header_preference,
    choices_seeds_and_log_probabilities,
    completions,
    models,
    errors,
    a_client_that_leaves_frees_its_work,
]:
    check()
    print(check.__name__, "ok", flush=True)
