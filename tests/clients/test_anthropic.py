"""The package `anthropic` against a server with a toy model."""

import json
from typing import Literal

import anthropic
import runner
from pydantic import BaseModel, ConfigDict
from runner import CONTROL, MODEL, encode, fetch, no_end, no_spaces, refused, user


class Trip(BaseModel):
    """Has few values, so that the model finishes one."""

    model_config = ConfigDict(extra="forbid")
    city: Literal["Paris", "Rome"]
    days: Literal[1, 2, 3]


SCHEMA = Trip.model_json_schema()
WEATHER = {"name": "weather", "description": "Tells the weather", "input_schema": SCHEMA}
CLOCK = {"name": "clock", "input_schema": {"type": "object", "properties": {}}}
NAMED = {"type": "tool", "name": "weather"}
TALE = user("Tell a tale.")


def request(messages=TALE, body=(), **more):
    """Answers that do not say otherwise are greedy and short. `body` has fields that the package does not know."""
    return {
        "model": MODEL,
        "messages": messages,
        "max_tokens": 24,
        "extra_body": {"temperature": 0, **dict(body)},
        **more,
    }


def ask(client, messages=TALE, **more):
    return client.messages.create(**request(messages, **more))


def calling(body=(), **more):
    """Has a tool called."""
    body = {"logit_bias": no_spaces(), **dict(body)}
    return {"tools": [WEATHER], "tool_choice": NAMED, "max_tokens": 100, "body": body, **more}


def call(client, messages=TALE, **more):
    return ask(client, messages, **calling(**more))


def text_of(answer):
    return "".join(block.text for block in answer.content if block.type == "text")


def count(client, messages=TALE, **more):
    return client.messages.count_tokens(model=MODEL, messages=messages, **more).input_tokens


def prompt_of(usage):
    """Returns how many tokens a prompt had, from the cache and otherwise."""
    return usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens


# --- messages ------------------------------------------------------------------------------------


def test_messages(client):
    got = ask(client)
    assert got.id.startswith("msg_") and (got.type, got.role, got.model) == ("message", "assistant", MODEL)
    assert [block.type for block in got.content] == ["text"] and got.content[0].text
    assert (got.stop_reason, got.stop_sequence, got.usage.output_tokens) == ("max_tokens", None, 24)
    assert text_of(ask(client)) == text_of(got)


def test_requests_have_ids(client):
    assert ask(client)._request_id.startswith("req_")
    error = refused(anthropic.NotFoundError, lambda: ask(client, model="other"))
    assert error.request_id == error.body["request_id"]


def test_messages_end_by_themselves(client):
    got = ask(client, max_tokens=2000)
    assert got.stop_reason in ("end_turn", "max_tokens") and text_of(got).startswith(text_of(ask(client)))


def test_a_stream_says_the_same(client):
    more = {"max_tokens": 60, "body": {"temperature": 1, "seed": 7}}
    whole = ask(client, **more)
    with client.messages.stream(**request(**more)) as stream:
        pieces = list(stream.text_stream)
        done = stream.get_final_message()
    assert "".join(pieces) == text_of(whole) == text_of(done) and len(pieces) > 20
    assert (done.stop_reason, done.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    assert prompt_of(done.usage) == prompt_of(whole.usage)


def test_events_of_a_stream(client):
    events = [event for event in ask(client, stream=True) if event.type != "ping"]
    kinds = [event.type for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert events[0].message.content == [] and events[0].message.stop_reason is None
    assert prompt_of(events[0].message.usage) == count(client)
    assert {event.index for event in events[1:-2]} == {0}
    assert "".join(event.delta.text for event in events[2:-3]) == text_of(ask(client))
    assert (events[-2].delta.stop_reason, events[-2].usage.output_tokens) == ("max_tokens", 24)


def test_seeds(client):
    write = lambda seed: text_of(ask(client, max_tokens=40, body={"temperature": 1, "seed": seed}))
    assert write(1) == write(1)
    assert write(1) != write(2)


def test_sampling(client):
    greedy = text_of(ask(client))
    assert text_of(ask(client, body={"temperature": 1, "top_k": 1})) == greedy
    assert text_of(ask(client, body={"temperature": 1, "top_p": 0.0})) == greedy


def test_stop_sequences(client):
    whole = text_of(ask(client, max_tokens=60))
    # Neither is at the beginning of a token.
    first, second = whole[9:14], whole[30:36]
    for stops in [[first], [second, first]]:
        got = ask(client, max_tokens=60, stop_sequences=stops)
        assert (got.stop_reason, got.stop_sequence) == ("stop_sequence", first)
        assert text_of(got) == whole[: whole.index(first)]
        with client.messages.stream(**request(max_tokens=60, stop_sequences=stops)) as stream:
            done = stream.get_final_message()
        assert (text_of(done), done.stop_reason, done.stop_sequence) == (text_of(got), "stop_sequence", first)


def test_system(client):
    text = ask(client, system="Be brief.")
    blocks = ask(client, system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}])
    assert text_of(text) == text_of(blocks) and prompt_of(text.usage) == prompt_of(blocks.usage)
    assert prompt_of(text.usage) == count(client, system="Be brief.") > count(client)


def test_prefill(client):
    whole = text_of(ask(client))
    begun = [*TALE, {"role": "assistant", "content": whole[:4]}]
    got = ask(client, begun)
    assert got.stop_reason == "max_tokens" and text_of(got)
    assert prompt_of(got.usage) > count(client)


def test_cached_tokens(client):
    messages = user("There was a cat. " * 80)
    first = ask(client, messages)
    messages = [*messages, {"role": "assistant", "content": first.content}, *user("Go on.")]
    second = ask(client, messages)
    assert prompt_of(first.usage) // 2 < second.usage.cache_read_input_tokens < prompt_of(second.usage)
    assert prompt_of(second.usage) == count(client, messages)


def test_fields_of_llama_cpp(client):
    messages = user("There was a mouse. " * 80)
    first = ask(client, messages)
    assert ask(client, messages).usage.cache_read_input_tokens > 0
    fresh = ask(client, messages, body={"cache_prompt": False})
    assert fresh.usage.cache_read_input_tokens == 0 and text_of(fresh) == text_of(first)
    assert text_of(ask(client, body={"grammar": 'root ::= "yes" | "no"'})) in ("yes", "no")
    assert ask(client, body={"ignore_eos": True}, max_tokens=400).usage.output_tokens == 400


def test_count_tokens(client):
    assert count(client) == prompt_of(ask(client).usage)
    assert count(client, user("Tell")) < count(client, user("Tell a tale. " * 3))
    assert count(client, tools=[WEATHER]) == prompt_of(ask(client, tools=[WEATHER]).usage) > count(client)
    blocks = [{"role": "user", "content": [{"type": "text", "text": "Tell a tale."}]}]
    assert count(client, blocks) == count(client)


def test_thinking_is_accepted(client):
    for thinking in [{"type": "disabled"}, {"type": "enabled", "budget_tokens": 1024}]:
        assert text_of(ask(client, thinking=thinking, max_tokens=1100))


# --- JSON and tools ------------------------------------------------------------------------------


def test_json_schema(client):
    got = ask(
        client,
        max_tokens=100,
        output_config={"format": {"type": "json_schema", "schema": SCHEMA}},
        body={"logit_bias": no_spaces()},
    )
    Trip.model_validate_json(text_of(got))
    assert got.stop_reason == "end_turn"


def test_parse(client):
    got = client.messages.parse(**request(max_tokens=100, body={"logit_bias": no_spaces()}), output_format=Trip)
    assert isinstance(got.parsed_output, Trip)


def test_a_named_tool_is_called(client):
    got = call(client)
    [block] = got.content
    assert (block.type, block.name, got.stop_reason) == ("tool_use", "weather", "tool_use")
    assert block.id.startswith("toolu_")
    Trip.model_validate(block.input)


def test_any_tool_is_called(client):
    got = call(client, tools=[CLOCK, WEATHER], tool_choice={"type": "any"})
    for block in got.content:
        assert block.type == "tool_use" and block.name in ("clock", "weather")
        if block.name == "weather":
            Trip.model_validate(block.input)


def test_streamed_calls(client):
    for seed in range(3):
        more = calling(body={"temperature": 1, "seed": seed})
        [block] = ask(client, **more).content
        with client.messages.stream(**request(**more)) as stream:
            parts = [event.partial_json for event in stream if event.type == "input_json"]
            done = stream.get_final_message()
        assert json.loads("".join(parts)) == done.content[0].input == block.input and len(parts) > 1
        assert done.stop_reason == "tool_use" and done.content[0].name == "weather"


def test_parallel_calls(client):
    # An answer that may not end has one call after the other, until it is cut.
    endless = {"logit_bias": no_spaces() | no_end()}
    more = calling(tool_choice={"type": "any"}, max_tokens=200, body=endless)
    got = ask(client, **more)
    calls = [block for block in got.content if block.type == "tool_use"]
    assert len(calls) > 1 and len({block.id for block in calls}) == len(calls)
    for block in calls:
        Trip.model_validate(block.input)
    starts = [event for event in ask(client, **more, stream=True) if event.type == "content_block_start"]
    assert [event.index for event in starts] == list(range(len(starts))) and len(starts) >= len(calls)
    one = ask(client, **more | {"tool_choice": {"type": "any", "disable_parallel_tool_use": True}})
    assert len(one.content) == 1 and one.stop_reason == "tool_use"


def test_results_of_tools(client):
    called = call(client)
    result = {"type": "tool_result", "tool_use_id": called.content[0].id, "content": "rain"}
    turns = lambda result: [
        *TALE,
        {"role": "assistant", "content": called.content},
        {"role": "user", "content": result},
    ]
    got = ask(client, turns([result]), tools=[WEATHER])
    assert got.content
    parts = [{"type": "text", "text": "rain"}]
    assert prompt_of(got.usage) == count(client, turns([{**result, "content": parts}]), tools=[WEATHER])
    assert prompt_of(got.usage) < count(client, turns([{**result, "is_error": True}]), tools=[WEATHER])
    # And once more.
    asked = turns([result, {"type": "text", "text": "And there?"}])
    Trip.model_validate(call(client, asked).content[0].input)


def test_tools_that_may_not_be_called(client):
    without = ask(client)
    got = ask(client, tools=[WEATHER], tool_choice={"type": "none"})
    assert (text_of(got), prompt_of(got.usage)) == (text_of(without), prompt_of(without.usage))


# --- models and errors ---------------------------------------------------------------------------


def test_models(client):
    unchecked = client.with_options(_extra_kwargs={"_strict_response_validation": False})
    models = list(unchecked.models.list())
    assert MODEL in [model.id for model in models] and {model.type for model in models} == {"model"}
    assert unchecked.models.retrieve(MODEL).display_name == MODEL
    refused(anthropic.NotFoundError, lambda: client.models.retrieve("other"))


def test_models_have_the_documented_types(client):
    for model in client.models.list():
        assert model.created_at.year > 2020


def test_a_context_that_is_full(client):
    # Almost as long as the context, with an answer that may not end by itself.
    n_ctx = json.loads(fetch("/props"))["default_generation_settings"]["n_ctx"]
    sentence = len(encode("There was a dog. " * 11)) - len(encode("There was a dog. " * 10))
    long = user("There was a dog. " * ((n_ctx - 100) // sentence))
    got = ask(client, long, max_tokens=5000, body={"logit_bias": no_end()})
    assert prompt_of(got.usage) + got.usage.output_tokens >= n_ctx
    assert got.stop_reason == "model_context_window_exceeded"


def test_prompts_that_are_too_long(client):
    n_ctx = json.loads(fetch("/props"))["default_generation_settings"]["n_ctx"]
    for stream in [False, True]:
        error = refused(anthropic.BadRequestError, lambda: ask(client, user("There was a dog. " * 1000), stream=stream))
        body = error.body["error"]
        assert body["type"] == "invalid_request_error" and body["n_prompt_tokens"] > n_ctx
        assert str(n_ctx) in body["message"] and str(body["n_prompt_tokens"]) in body["message"]


def test_unknown_models(client):
    error = refused(anthropic.NotFoundError, lambda: ask(client, model="other"))
    assert error.body["type"] == "error" and error.body["error"]["type"] == "not_found_error"
    assert "other" in error.body["error"]["message"]
    refused(anthropic.NotFoundError, lambda: client.messages.count_tokens(model="other", messages=TALE))


def test_wrong_fields(client):
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
    for name, value in [
        ("max_tokens", 0),
        ("max_tokens", "all"),
        ("messages", []),
        ("messages", "Tell a tale."),
        ("messages", [{"role": "tool", "content": "x"}]),
        ("messages", [{"role": "user", "content": [image]}]),
        ("temperature", -1),
        ("temperature", "warm"),
        ("top_p", 2),
        ("stop_sequences", "x"),
        ("system", 7),
        ("tools", [{"input_schema": {}}]),
        ("tools", [WEATHER, WEATHER]),
        ("tool_choice", {"type": "tool", "name": "other"}),
        ("tool_choice", {"type": "sometimes"}),
        ("thinking", {"type": "deep"}),
    ]:
        # As they are: the package checks some itself.
        error = refused(anthropic.BadRequestError, lambda: ask(client, body={name: value}))
        body = error.body["error"]
        assert body["type"] == "invalid_request_error" and name in body["message"], (name, value, body)
    error = refused(
        anthropic.BadRequestError,
        lambda: client.post("/v1/messages", cast_to=object, body={"model": MODEL, "messages": TALE}),
    )
    assert "max_tokens" in error.body["error"]["message"]


def test_keys(client):
    error = refused(anthropic.AuthenticationError, lambda: ask(client.with_options(api_key="wrong")))
    assert error.body["type"] == "error" and error.body["error"]["type"] == "authentication_error"
    # The other kind of key, too.
    bearer = anthropic.Anthropic(base_url=runner.URL, auth_token=runner.KEY, api_key=None, max_retries=0)
    assert text_of(ask(bearer)) == text_of(ask(client))


def test_unknown_routes(client):
    error = refused(anthropic.NotFoundError, lambda: client.messages.batches.list())
    assert error.body["error"]["type"] == "not_found_error"


# --- cancellation --------------------------------------------------------------------------------


def test_a_stream_that_is_closed_frees_its_slot(client):
    before = runner.n_written()
    # It can only end with the context.
    with client.messages.stream(**request(max_tokens=5000, body={"logit_bias": no_end()})) as stream:
        for _, _ in zip(range(5), stream.text_stream):
            pass
        runner.wait_until(lambda: not runner.is_idle())
    runner.wait_until(runner.is_idle)
    assert runner.n_written() - before < 1000
    assert text_of(ask(client))


# --- control tokens ------------------------------------------------------------------------------


def test_control_tokens_in_messages_are_text(client):
    spelled = lambda conversation, **more: (
        count(client, conversation(CONTROL), **more) - count(client, conversation("a"), **more)
    )
    length = spelled(user)
    # It takes more tokens than the control tokens would.
    assert length > len(encode(CONTROL, special=True)) + 8
    called = {"type": "tool_use", "id": "1", "name": "weather", "input": {}}
    for conversation in [
        lambda text: [{"role": "user", "content": [{"type": "text", "text": text}]}],
        lambda text: [*TALE, {"role": "assistant", "content": text}, *TALE],
        lambda text: [*TALE, {"role": "assistant", "content": text}],
        lambda text: [
            *TALE,
            {"role": "assistant", "content": [called]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": text}]},
        ],
    ]:
        assert spelled(conversation) == length, conversation("...")
    assert count(client, system=CONTROL) - count(client, system="a") == length
    got = ask(client, user(CONTROL))
    assert prompt_of(got.usage) == count(client, user(CONTROL))


if __name__ == "__main__":
    # The package checks that answers have the types that it documents.
    connected = anthropic.Anthropic(
        base_url=runner.URL, api_key=runner.KEY, max_retries=0, timeout=60, _strict_response_validation=True
    )
    runner.run("anthropic, Python", globals(), connected)
