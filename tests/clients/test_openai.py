"""The package `openai` against a server with a toy model."""

import json
import math
from typing import Annotated, Literal

import openai
import runner
from pydantic import BaseModel, ConfigDict, Field
from runner import CONTROL, MODEL, encode, fetch, no_end, no_spaces, refused, user


class Trip(BaseModel):
    """Has few values, so that the model finishes one."""

    model_config = ConfigDict(extra="forbid")
    city: Literal["Paris", "Rome"]
    days: Annotated[int, Field(ge=1, le=7)]


WEATHER = openai.pydantic_function_tool(Trip, name="weather", description="Tells the weather")
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
NAMED = {"type": "function", "function": {"name": "weather"}}
FORM = {
    "type": "json_schema",
    "json_schema": {"name": "trip", "strict": True, "schema": WEATHER["function"]["parameters"]},
}
# The same in /v1/responses.
FUNCTION = {"type": "function", **WEATHER["function"]}
TALE = user("Tell a tale.")


def ask(client, messages=TALE, **more):
    """Answers that do not say otherwise are greedy and short."""
    more = {"temperature": 0, "max_tokens": 24, **more}
    return client.chat.completions.create(model=MODEL, messages=messages, **more)


def call(client, messages=TALE, **more):
    """Has a tool called."""
    more = {"tools": [WEATHER], "tool_choice": NAMED, "max_tokens": 100, "logit_bias": no_spaces(), **more}
    return ask(client, messages, **more)


def respond(client, given="Tell a tale.", **more):
    more = {"temperature": 0, "max_output_tokens": 24, **more}
    return lax(client).responses.create(model=MODEL, input=given, **more)


def lax(client):
    """Returns the client without its checks of types."""
    return client.with_options(_extra_kwargs={"_strict_response_validation": False})


def text_of(answer):
    return answer.choices[0].message.content


def joined(stream):
    """Adds up the pieces of a stream: returns the text of each choice, why each ended, the usage, and all chunks."""
    chunks = list(stream)
    texts, reasons, usage = {}, {}, None
    for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
    return texts, reasons, usage, chunks


def tokens_of(client, **request):
    """Returns the length of the prompt."""
    return ask(client, **{"max_tokens": 1, **request}).usage.prompt_tokens


# --- chat ----------------------------------------------------------------------------------------


def test_chat(client):
    got = ask(client)
    assert got.id.startswith("chatcmpl-") and got.object == "chat.completion" and got.model == MODEL
    assert got.system_fingerprint and got.created > 1_600_000_000
    choice = got.choices[0]
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert choice.message.role == "assistant" and choice.message.content and choice.message.tool_calls is None
    assert got.usage.completion_tokens == 24
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens
    assert got._request_id.startswith("req_")


def test_chat_ends_by_itself(client):
    got = ask(client, max_tokens=None)
    assert got.choices[0].finish_reason in ("stop", "length")
    assert text_of(got).startswith(text_of(ask(client)))


def test_a_stream_says_the_same(client):
    more = {"temperature": 1, "seed": 7, "max_tokens": 60}
    whole = ask(client, **more)
    texts, reasons, usage, chunks = joined(ask(client, **more, stream=True, stream_options={"include_usage": True}))
    assert texts[0] == text_of(whole) and reasons[0] == whole.choices[0].finish_reason
    assert usage.model_dump(exclude={"prompt_tokens_details"}) == whole.usage.model_dump(
        exclude={"prompt_tokens_details"}
    )
    assert chunks[0].choices[0].delta.role == "assistant" and len(chunks) > 20
    assert chunks[-1].choices == [] and chunks[-1].usage
    assert {(chunk.id, chunk.created, chunk.object) for chunk in chunks} == {
        (chunks[0].id, chunks[0].created, "chat.completion.chunk")
    }


def test_a_stream_has_no_usage_unless_it_is_wanted(client):
    *_, chunks = joined(ask(client, stream=True))
    assert all(chunk.usage is None for chunk in chunks)
    assert all(len(chunk.choices) == 1 for chunk in chunks)


def test_stream_helper(client):
    # It takes answers that are cut for errors.
    whole = text_of(ask(client))
    stop = whole[30:36]
    with client.chat.completions.stream(model=MODEL, messages=TALE, temperature=0, stop=stop) as stream:
        kinds = {event.type for event in stream}
        done = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert text_of(done) == whole[: whole.index(stop)]


def test_seeds(client):
    write = lambda seed: text_of(ask(client, temperature=1, seed=seed, max_tokens=40))
    assert write(1) == write(1)
    assert write(1) != write(2)
    assert text_of(ask(client)) == text_of(ask(client))


def test_several_answers(client):
    more = {"temperature": 1, "seed": 5, "n": 3}
    got = ask(client, **more)
    assert [choice.index for choice in got.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in got.choices]
    assert len(set(texts)) == 3
    assert texts[0] == text_of(ask(client, **more | {"n": 1}))
    # The prompt counts once.
    assert got.usage.prompt_tokens == ask(client).usage.prompt_tokens and got.usage.completion_tokens == 72
    streamed, *_ = joined(ask(client, **more, stream=True))
    assert [streamed[i] for i in range(3)] == texts


def test_stop(client):
    whole = text_of(ask(client, max_tokens=60))
    # Neither is at the beginning of a token.
    first, second = whole[9:14], whole[30:36]
    for stop in [first, [second, first], ["\0", first]]:
        got = ask(client, max_tokens=60, stop=stop)
        assert text_of(got) == whole[: whole.index(first)] and got.choices[0].finish_reason == "stop"
        texts, reasons, *_ = joined(ask(client, max_tokens=60, stop=stop, stream=True))
        assert (texts[0], reasons[0]) == (text_of(got), "stop")
    assert text_of(ask(client, max_tokens=60, stop="\0")) == whole


def test_max_tokens(client):
    longer = text_of(ask(client))
    for field in ["max_tokens", "max_completion_tokens"]:
        got = ask(client, **{"max_tokens": None, field: 5})
        assert got.usage.completion_tokens == 5 and got.choices[0].finish_reason == "length"
        assert longer.startswith(text_of(got))


def test_logprobs(client):
    got = ask(client, logprobs=True, top_logprobs=5)
    tokens = got.choices[0].logprobs.content
    assert len(tokens) == got.usage.completion_tokens
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == text_of(got)
    for token in tokens:
        likely = [top.logprob for top in token.top_logprobs]
        assert len(likely) == 5 and likely == sorted(likely, reverse=True)
        assert sum(map(math.exp, likely)) < 1.0001
        # A greedy answer has the likeliest tokens.
        assert (token.token, token.logprob) == (token.top_logprobs[0].token, likely[0])
    *_, chunks = joined(ask(client, logprobs=True, top_logprobs=5, stream=True))
    pieces = [choice.logprobs for chunk in chunks for choice in chunk.choices if choice.logprobs]
    assert [token for piece in pieces for token in piece.content] == tokens
    assert all(token.top_logprobs == [] for token in ask(client, logprobs=True).choices[0].logprobs.content)


def test_logit_bias(client):
    first = ask(client, logprobs=True).choices[0].logprobs.content[0].token
    token = encode(first)[0]
    assert not text_of(ask(client, logit_bias={str(token): -100})).startswith(first)
    assert text_of(ask(client, logit_bias={str(token): 100}, max_tokens=3)) == first * 3
    error = refused(openai.BadRequestError, lambda: ask(client, logit_bias={str(token): 101}))
    assert error.param == "logit_bias"


def test_cached_tokens(client):
    messages = user("There was a dog. " * 80)
    first = ask(client, messages)
    messages += [{"role": "assistant", "content": text_of(first)}, *user("Go on.")]
    second = ask(client, messages)
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert first.usage.prompt_tokens // 2 < cached < second.usage.prompt_tokens
    # What is read again gives the same answer.
    fresh = ask(client, messages, extra_body={"cache_prompt": False})
    assert fresh.usage.prompt_tokens_details.cached_tokens == 0
    assert text_of(fresh) == text_of(second)
    _, _, usage, _ = joined(ask(client, messages, stream=True, stream_options={"include_usage": True}))
    assert usage.prompt_tokens_details.cached_tokens >= cached


def test_roles_and_parts(client):
    plain = tokens_of(client, messages=[{"role": "system", "content": "Be brief."}, *TALE])
    parts = [{"type": "text", "text": "Be brief."}]
    for messages in [
        [{"role": "developer", "content": "Be brief."}, *TALE],
        [{"role": "system", "content": parts}, *TALE],
        [{"role": "system", "content": "Be brief."}, {**TALE[0], "name": "Anna"}],
    ]:
        assert tokens_of(client, messages=messages) == plain, messages
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
    error = refused(openai.BadRequestError, lambda: ask(client, [{"role": "user", "content": [image]}]))
    assert error.code == "unsupported_content" and "image_url" in error.message


# --- JSON ----------------------------------------------------------------------------------------


def test_json_schema(client):
    for seed in range(3):
        more = {"temperature": 1, "seed": seed, "logit_bias": no_spaces(), "max_tokens": 100}
        got = ask(client, response_format=FORM, **more)
        Trip.model_validate_json(text_of(got))
        assert got.choices[0].finish_reason == "stop"
        texts, *_ = joined(ask(client, response_format=FORM, **more, stream=True))
        assert texts[0] == text_of(got)


def test_json_schema_ends_without_help(client):
    got = ask(client, response_format=FORM, max_tokens=200)
    Trip.model_validate_json(text_of(got))


def test_json_schema_with_more_in_it(client):
    class Plan(BaseModel):
        model_config = ConfigDict(extra="forbid")
        name: Literal['a"b', "c\\d", "é"]
        trips: Annotated[list[Trip], Field(min_length=2, max_length=2)]
        back: Trip | None
        sure: bool

    got = client.chat.completions.parse(
        model=MODEL, messages=TALE, response_format=Plan, temperature=0, logit_bias=no_spaces(), max_tokens=200
    )
    plan = got.choices[0].message.parsed
    assert isinstance(plan, Plan) and len(plan.trips) == 2


def test_json_object(client):
    got = ask(client, response_format={"type": "json_object"}, logit_bias=no_spaces(), max_tokens=400)
    assert got.choices[0].finish_reason == "length" or isinstance(json.loads(text_of(got)), dict)
    assert text_of(got).startswith("{")


def test_wrong_forms_are_refused(client):
    schema = lambda schema: {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    for form in [{"type": "yaml"}, {"type": "json_schema"}, schema({"type": "person"}), schema({"enum": []})]:
        refused(openai.BadRequestError, lambda: ask(client, response_format=form))


# --- tools ---------------------------------------------------------------------------------------


def test_a_named_tool_is_called(client):
    got = call(client)
    assert got.choices[0].finish_reason == "tool_calls" and text_of(got) is None
    [called] = got.choices[0].message.tool_calls
    assert called.type == "function" and called.id and called.function.name == "weather"
    Trip.model_validate_json(called.function.arguments)


def test_a_required_tool_is_called(client):
    got = call(client, tools=[CLOCK, WEATHER], tool_choice="required")
    for called in got.choices[0].message.tool_calls:
        match called.function.name:
            case "weather":
                Trip.model_validate_json(called.function.arguments)
            case name:
                assert name == "clock" and isinstance(json.loads(called.function.arguments), dict)


def test_a_tool_is_called_without_help(client):
    [called] = call(client, logit_bias={}, max_tokens=300).choices[0].message.tool_calls
    Trip.model_validate_json(called.function.arguments)


def test_streamed_calls(client):
    for seed in range(3):
        more = {"temperature": 1, "seed": seed}
        [called] = call(client, **more).choices[0].message.tool_calls
        pieces, reason = [], None
        for chunk in call(client, **more, stream=True):
            reason = chunk.choices[0].finish_reason or reason
            pieces += chunk.choices[0].delta.tool_calls or []
        assert pieces[0].id and pieces[0].type == "function" and pieces[0].function.name == "weather"
        # Only the first piece has the names.
        assert all((piece.id, piece.function.name) == (None, None) for piece in pieces[1:])
        assert {piece.index for piece in pieces} == {0} and len(pieces) > 2
        assert "".join(piece.function.arguments for piece in pieces) == called.function.arguments
        assert reason == "tool_calls"


def test_streamed_calls_helper(client):
    with client.chat.completions.stream(
        model=MODEL, messages=TALE, tools=[WEATHER], tool_choice=NAMED, temperature=0, logit_bias=no_spaces()
    ) as stream:
        kinds = {event.type for event in stream}
        [called] = stream.get_final_completion().choices[0].message.tool_calls
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    assert isinstance(called.function.parsed_arguments, Trip)


def test_parallel_calls(client):
    # An answer that may not end has one call after the other, until it is cut.
    more = {"tool_choice": "required", "logit_bias": no_spaces() | no_end(), "max_tokens": 200}
    got = call(client, **more)
    calls = got.choices[0].message.tool_calls
    assert len(calls) > 2 and got.choices[0].finish_reason == "length"
    assert len({called.id for called in calls}) == len(calls)
    for called in calls[:-1]:
        Trip.model_validate_json(called.function.arguments)
    arguments = {}
    for chunk in call(client, **more, stream=True):
        for piece in chunk.choices[0].delta.tool_calls or []:
            arguments[piece.index] = arguments.get(piece.index, "") + piece.function.arguments
    assert list(arguments.items()) == list(enumerate(called.function.arguments for called in calls))
    assert len(call(client, **more, parallel_tool_calls=False).choices[0].message.tool_calls) == 1


def test_results_of_tools(client):
    got = call(client)
    called = got.choices[0].message.tool_calls[0]
    result = {"role": "tool", "tool_call_id": called.id, "content": "rain"}
    messages = [*TALE, got.choices[0].message, result]
    got = ask(client, messages, tools=[WEATHER])
    assert text_of(got) or got.choices[0].message.tool_calls
    longer = ask(client, [*messages[:-1], {**result, "content": "rain and wind"}], tools=[WEATHER])
    assert longer.usage.prompt_tokens == got.usage.prompt_tokens + len(encode("rain and wind")) - len(encode("rain"))
    # And once more.
    again = call(client, [*messages, {"role": "assistant", "content": "It rains."}, *user("And there?")])
    Trip.model_validate_json(again.choices[0].message.tool_calls[0].function.arguments)


def test_tools_that_may_not_be_called(client):
    without = ask(client)
    got = ask(client, tools=[WEATHER], tool_choice="none")
    assert (text_of(got), got.usage.prompt_tokens) == (text_of(without), without.usage.prompt_tokens)
    got = ask(client, tools=[WEATHER], tool_choice="auto")
    assert got.usage.prompt_tokens > without.usage.prompt_tokens


def test_wrong_tools_are_refused(client):
    other = {"type": "function", "function": {"name": "other"}}
    for request in [
        {"tools": [WEATHER], "tool_choice": other},
        {"tool_choice": "required"},
        {"tools": [WEATHER], "tool_choice": "sometimes"},
        {"tools": [WEATHER, WEATHER]},
        {"tools": [{"type": "function", "function": {"name": "two words"}}]},
        {"tools": [{"type": "function"}]},
    ]:
        error = refused(openai.BadRequestError, lambda: ask(client, **request))
        assert error.param.startswith("tool"), (request, error)


# --- completions, embeddings, models -------------------------------------------------------------


def test_completions(client):
    # In the package's types, pieces of a stream have the reason for which the text ended.
    write = lambda prompt, **more: lax(client).completions.create(
        model=MODEL, prompt=prompt, **{"temperature": 0, "max_tokens": 12, **more}
    )
    got = write("Once upon")
    assert got.id.startswith("cmpl-") and got.object == "text_completion"
    assert (got.choices[0].finish_reason, got.usage.completion_tokens) == ("length", 12)
    text = got.choices[0].text
    # Texts and tokens are the same prompt.
    assert write(encode("Once upon")).choices[0].text == text
    several = write(["Once upon", "The dog"], echo=True)
    assert [choice.index for choice in several.choices] == [0, 1]
    assert several.choices[0].text == "Once upon" + text and several.choices[1].text.startswith("The dog")
    assert several.usage.completion_tokens == 24
    chunks = list(write("Once upon", stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == text
    assert chunks[-1].usage == got.usage
    word = text[5:9]
    stopped = write("Once upon", stop=[word]).choices[0]
    assert (stopped.text, stopped.finish_reason) == (text[: text.index(word)], "stop")
    seeded = [choice.text for choice in write("Once upon", n=2, temperature=1, seed=3).choices]
    assert seeded == [choice.text for choice in write("Once upon", n=2, temperature=1, seed=3).choices]
    assert seeded[0] != seeded[1]


def test_completions_logprobs(client):
    got = client.completions.create(model=MODEL, prompt="Once upon", temperature=0, max_tokens=6, logprobs=2)
    choice = got.choices[0]
    logprobs = choice.logprobs
    assert "".join(logprobs.tokens) == choice.text and len(logprobs.tokens) == 6
    assert all(number <= 0 for number in logprobs.token_logprobs)
    assert all(
        len(top) == 2 and token in top for token, top in zip(logprobs.tokens, logprobs.top_logprobs, strict=True)
    )
    assert [offset - logprobs.text_offset[0] for offset in logprobs.text_offset] == [
        len("".join(logprobs.tokens[:i])) for i in range(6)
    ]


def test_completions_echo_logprobs_of_the_prompt(client):
    # In the package's types, every token has a log-probability.
    told = lambda **more: lax(client).completions.create(model=MODEL, temperature=0, logprobs=1, echo=True, **more)
    got = told(prompt="Once upon", max_tokens=1)
    logprobs = got.choices[0].logprobs
    assert "".join(logprobs.tokens) == got.choices[0].text
    assert logprobs.token_logprobs[0] is None and logprobs.text_offset[0] == 0
    assert all(number <= 0 for number in logprobs.token_logprobs[1:]) and len(logprobs.tokens) > 2
    # What a text adds to its prompt has the same probabilities as a prompt and as an answer.
    written = client.completions.create(model=MODEL, prompt="Once upon", temperature=0, max_tokens=4, logprobs=1)
    prompt = encode("Once upon" + written.choices[0].text)
    read = told(prompt=prompt, max_tokens=0)
    tokens, numbers = read.choices[0].logprobs.tokens, read.choices[0].logprobs.token_logprobs
    assert tokens[-4:] == written.choices[0].logprobs.tokens and read.choices[0].finish_reason == "length"
    # One token alone is computed by other functions than several together.
    pairs = zip(numbers[-4:], written.choices[0].logprobs.token_logprobs, strict=True)
    assert all(abs(a - b) < 0.05 for a, b in pairs)


def test_embeddings(client):
    # The package's checks of types come before it decodes base64.
    embed = lambda given, **more: lax(client).embeddings.create(model=MODEL, input=given, **more)
    # The package asks for base64 and decodes it, unless it is told otherwise.
    got = embed(["The dog", "Once upon a time"])
    floats = embed(["The dog", "Once upon a time"], encoding_format="float")
    assert [entry.index for entry in got.data] == [0, 1] and got.object == "list"
    for of_base64, of_floats in zip(got.data, floats.data, strict=True):
        assert len(of_base64.embedding) == len(of_floats.embedding)
        assert all(abs(a - b) < 1e-6 for a, b in zip(of_base64.embedding, of_floats.embedding, strict=True))
        assert abs(sum(number**2 for number in of_floats.embedding) - 1) < 1e-3
    assert got.data[0].embedding != got.data[1].embedding
    assert (
        got.usage.prompt_tokens
        == got.usage.total_tokens
        == sum(len(encode(text)) for text in ["The dog", "Once upon a time"])
    )
    one = embed("The dog")
    assert one.data[0].embedding == got.data[0].embedding
    assert embed(encode("The dog")).data[0].embedding == one.data[0].embedding
    assert isinstance(embed("The dog", encoding_format="base64").data[0].embedding, str)
    for wrong in [{"given": ""}, {"given": []}, {"given": "The dog", "dimensions": 7}]:
        refused(openai.BadRequestError, lambda: embed(**wrong))


def test_models(client):
    models = list(client.models.list())
    assert MODEL in [model.id for model in models] and {model.object for model in models} == {"model"}
    assert client.models.retrieve(MODEL).id == MODEL
    refused(openai.NotFoundError, lambda: client.models.retrieve("other"))


# --- responses -----------------------------------------------------------------------------------


def test_responses(client):
    got = respond(client)
    assert got.id.startswith("resp_") and got.object == "response"
    # It was cut.
    assert (got.status, got.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert got.output[0].type == "message" and got.output[0].role == "assistant"
    assert got.output_text == text_of(ask(client))
    assert got.usage.output_tokens == 24 and got.usage.total_tokens == got.usage.input_tokens + 24
    whole = respond(client, max_output_tokens=None)
    if whole.status == "completed":
        assert whole.incomplete_details is None and whole.completed_at and whole.output[0].status == "completed"


def test_responses_have_the_documented_types(client):
    client.responses.create(model=MODEL, input="Tell a tale.", max_output_tokens=4)
    for _ in client.responses.create(model=MODEL, input="Tell a tale.", max_output_tokens=4, stream=True):
        pass


def test_responses_are_kept(client):
    first = respond(client, instructions="Be brief.")
    assert lax(client).responses.retrieve(first.id).output_text == first.output_text
    [item] = client.responses.input_items.list(first.id).data
    assert item.content[0].text == "Tell a tale."
    second = respond(client, "Go on.", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    # Instructions are not carried over.
    talk = [*TALE, {"role": "assistant", "content": first.output_text}, *user("Go on.")]
    same = respond(client, talk)
    assert (same.usage.input_tokens, same.output_text) == (second.usage.input_tokens, second.output_text)
    count = client.responses.input_tokens.count(model=MODEL, input=talk).input_tokens
    assert count == same.usage.input_tokens
    client.responses.delete(first.id)
    refused(openai.NotFoundError, lambda: client.responses.retrieve(first.id))
    error = refused(openai.BadRequestError, lambda: respond(client, "Go on.", previous_response_id=first.id))
    assert error.code == "previous_response_not_found" and error.param == "previous_response_id"
    refused(openai.NotFoundError, lambda: client.responses.retrieve(respond(client, store=False).id))


def test_responses_instructions(client):
    assert (
        respond(client, instructions="Be brief.").output_text
        == respond(client, [{"role": "developer", "content": "Be brief."}, *TALE]).output_text
    )


def test_responses_stream(client):
    more = {"temperature": 1, "extra_body": {"seed": 3}}
    whole = respond(client, **more)
    events = list(respond(client, **more, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert "".join(event.delta for event in deltas) == whole.output_text == events[-1].response.output_text
    assert len({event.item_id for event in deltas}) == 1 and len(deltas) > 10
    assert events[-1].response.usage.output_tokens == whole.usage.output_tokens


def test_responses_stream_helper(client):
    with lax(client).responses.stream(
        model=MODEL, input="Tell a tale.", text_format=Trip, extra_body={"logit_bias": no_spaces()}
    ) as stream:
        for _ in stream:
            pass
        done = stream.get_final_response()
    assert isinstance(done.output_parsed, Trip) and done.status == "completed"


def test_responses_logprobs(client):
    got = respond(client, include=["message.output_text.logprobs"], top_logprobs=2)
    tokens = got.output[0].content[0].logprobs
    assert "".join(token.token for token in tokens) == got.output_text
    assert all(len(token.top_logprobs) == 2 for token in tokens)


def test_responses_json_schema(client):
    got = lax(client).responses.parse(
        model=MODEL, input="Tell a tale.", text_format=Trip, temperature=0, extra_body={"logit_bias": no_spaces()}
    )
    assert isinstance(got.output_parsed, Trip)
    form = {"format": {"type": "json_object"}}
    got = respond(client, text=form, max_output_tokens=400, extra_body={"logit_bias": no_spaces()})
    assert got.status == "incomplete" or isinstance(json.loads(got.output_text), dict)


def test_responses_tools(client):
    more = {
        "tools": [FUNCTION],
        "tool_choice": {"type": "function", "name": "weather"},
        "max_output_tokens": 100,
        "extra_body": {"logit_bias": no_spaces()},
    }
    got = respond(client, **more)
    [called] = got.output
    assert (called.type, called.name, called.status) == ("function_call", "weather", "completed")
    assert got.status == "completed" and called.call_id and called.id
    Trip.model_validate_json(called.arguments)
    events = list(respond(client, **more, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert "".join(deltas) == done[0].arguments == called.arguments and len(deltas) > 1
    assert events[-1].type == "response.completed"
    result = {"type": "function_call_output", "call_id": called.call_id, "output": "rain"}
    second = respond(client, [result], previous_response_id=got.id, tools=[FUNCTION])
    # The same without what is stored.
    given = respond(
        client, [*TALE, called.model_dump(exclude_none=True, exclude={"parsed_arguments"}), result], tools=[FUNCTION]
    )
    assert second.usage.input_tokens == given.usage.input_tokens
    assert [item.type for item in second.output] == [item.type for item in given.output]
    several = respond(
        client,
        **more
        | {
            "tool_choice": "required",
            "max_output_tokens": 200,
            "extra_body": {"logit_bias": no_spaces() | no_end()},
        },
    )
    assert len(several.output) > 2 and several.status == "incomplete"


# --- errors --------------------------------------------------------------------------------------


def test_prompts_that_are_too_long(client):
    long = "There was a dog. " * 1000
    n_ctx = json.loads(fetch("/props"))["default_generation_settings"]["n_ctx"]
    for send in [
        lambda: ask(client, user(long)),
        lambda: ask(client, user(long), stream=True),
        lambda: respond(client, long),
        lambda: client.completions.create(model=MODEL, prompt=long),
    ]:
        error = refused(openai.BadRequestError, send)
        assert error.code == "context_length_exceeded" and error.type == "invalid_request_error"
        n_prompt = error.body["n_prompt_tokens"]
        assert n_prompt > n_ctx and str(n_prompt) in error.message and str(n_ctx) in error.message
        assert error.request_id.startswith("req_")


def test_unknown_models(client):
    for send in [
        lambda: ask(client, extra_body={"model": "other"}),
        lambda: respond(client, extra_body={"model": "other"}),
        lambda: client.completions.create(model="other", prompt="Once"),
        lambda: client.embeddings.create(model="other", input="Once"),
    ]:
        error = refused(openai.NotFoundError, send)
        assert (error.code, error.param) == ("model_not_found", "model") and MODEL in error.message


def test_wrong_fields(client):
    for param, value in [
        ("messages", []),
        ("messages", "Tell a tale."),
        ("messages", [{"role": "nobody", "content": "x"}]),
        ("messages", [{"role": "user"}]),
        ("temperature", -1),
        ("temperature", "warm"),
        ("top_p", 2),
        ("n", 0),
        ("n", 1000),
        ("max_tokens", -5),
        ("max_tokens", "all"),
        ("seed", "x"),
        ("presence_penalty", 3),
        ("stop", 7),
        ("stream", "yes"),
        ("top_logprobs", 30),
        ("response_format", "json"),
        ("tools", {}),
        ("logit_bias", {"-1": 1}),
    ]:
        error = refused(openai.BadRequestError, lambda: ask(client, **{param: value}))
        assert error.type == "invalid_request_error" and error.message, param
        assert error.param.startswith(param), (param, error.param)
    error = refused(openai.BadRequestError, lambda: respond(client, max_output_tokens=0))
    assert error.param == "max_output_tokens"


def test_keys(client):
    for key in ["wrong", runner.KEY[:-1], runner.KEY + "x"]:
        error = refused(openai.AuthenticationError, lambda: ask(client.with_options(api_key=key)))
        assert error.status_code == 401 and runner.KEY not in error.message
    refused(openai.AuthenticationError, lambda: client.with_options(api_key="wrong").models.list())


def test_unknown_routes(client):
    refused(openai.NotFoundError, lambda: client.images.generate(prompt="A dog"))
    refused(openai.NotFoundError, lambda: client.files.list())


# --- cancellation --------------------------------------------------------------------------------


def test_a_stream_that_is_closed_frees_its_slot(client):
    before = runner.n_written()
    stream = ask(client, max_tokens=None, stream=True, extra_body={"ignore_eos": True})
    for _, _ in zip(range(5), stream):
        pass
    runner.wait_until(lambda: not runner.is_idle())
    stream.close()
    runner.wait_until(runner.is_idle)
    # It would have filled the context.
    assert runner.n_written() - before < 1000
    assert text_of(ask(client))


def test_a_request_that_is_given_up_frees_its_slot(client):
    before = runner.n_written()
    impatient = client.with_options(timeout=0.2)
    refused(openai.APITimeoutError, lambda: ask(impatient, max_tokens=None, n=4, extra_body={"ignore_eos": True}))
    runner.wait_until(runner.is_idle)
    assert runner.n_written() - before < 4000


# --- control tokens ------------------------------------------------------------------------------


def spelled(count):
    """Returns by how much longer a prompt is with `CONTROL` instead of "a" in it. `count` counts its tokens."""
    return count(CONTROL) - count("a")


def test_control_tokens_in_messages_are_text(client):
    length = spelled(lambda text: tokens_of(client, messages=user(text)))
    # It takes more tokens than the control tokens would.
    assert length > len(encode(CONTROL, special=True)) + 8
    called = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    for conversation in [
        lambda text: [{"role": "user", "content": [{"type": "text", "text": text}]}],
        lambda text: [{"role": "system", "content": text}, *TALE],
        lambda text: [*TALE, {"role": "assistant", "content": text}, *TALE],
        lambda text: [*TALE, {"role": "assistant", "content": text}],
        lambda text: [
            *TALE,
            {"role": "assistant", "tool_calls": [called]},
            {"role": "tool", "tool_call_id": "1", "content": text},
        ],
    ]:
        assert spelled(lambda text: tokens_of(client, messages=conversation(text))) == length, conversation("...")
    count = client.responses.input_tokens.count
    for place in ["input", "instructions"]:
        assert spelled(lambda text: count(model=MODEL, **{"input": "a", place: text}).input_tokens) == length


def test_control_tokens_in_tools_are_text(client):
    tools = lambda text: [{"type": "function", "function": {"name": "clock", "description": text}}]
    # The description is JSON, in which line feeds are two characters.
    assert spelled(lambda text: tokens_of(client, tools=tools(text))) > len(encode(CONTROL, special=True)) + 8


def test_control_tokens_in_other_texts_are_text(client):
    length = spelled(lambda text: tokens_of(client, messages=user(text)))
    complete = lambda text: client.completions.create(model=MODEL, prompt=text, max_tokens=1)
    embed = lambda text: client.embeddings.create(model=MODEL, input=text, encoding_format="float")
    for count in [
        lambda text: len(encode(text, special=False)),
        lambda text: complete(text).usage.prompt_tokens,
        lambda text: embed(text).usage.prompt_tokens,
    ]:
        assert spelled(count) == length


if __name__ == "__main__":
    # The package checks that answers have the types that it documents.
    connected = openai.OpenAI(
        base_url=f"{runner.URL}/v1", api_key=runner.KEY, max_retries=0, timeout=60, _strict_response_validation=True
    )
    runner.run("openai, Python", globals(), connected)
