"""What goes wrong, in sentences that say what to do."""

from mock import Script


def error(status, message, headers=None, **fields):
    return Script(error=(status, {"error": {"message": message, "type": "invalid_request_error", **fields}}, headers))


def test_a_conversation_that_is_too_long(chat):
    detail = "the prompt has 5210 tokens, but the context holds 4096"
    chat.mock.answers["Much"] = error(400, detail, code="context_length_exceeded")
    chat.open().ask("Much")
    problem = chat.page.get_by_role("alert").filter(has_text="longer than the model’s context")
    assert "start a new conversation" in problem.inner_text() and detail in problem.inner_text()
    chat.shot("too-long")
    # Trying again takes the place of the answer that never was.
    chat.mock.answers["Much"] = Script(text="It fits now.")
    chat.button("Try again").click()
    chat.shown("It fits now.").wait_for()
    assert chat.answers.count() == 1 and chat.button("Next alternative").count() == 0


def test_other_errors_say_what_to_do(chat):
    chat.open()
    for text, script, sentence in [
        ("a", error(400, "temperature must not be negative"), "The server refused the request."),
        ("b", error(429, "the queue is full", {"retry-after": 7}), "Try again in 7 s."),
        ("c", error(404, "no model 'x'", code="model_not_found"), "Choose another model in the settings."),
        ("d", error(500, "the engine ended"), "The server failed while it was answering."),
    ]:
        chat.mock.answers[text] = script
        chat.button("New conversation").click()
        chat.ask(text)
        shown = chat.page.locator(".problem").inner_text()
        assert sentence in shown and script.error[1]["error"]["message"] in shown, shown


def test_a_stream_that_breaks_is_kept_and_continued(chat):
    chat.mock.answers["Break"] = lambda body: (
        Script(text=" And the rest.")
        if body["messages"][-1]["role"] == "assistant"
        else Script(text="The beginning is here already.", delay=0.02, dies_after=4)
    )
    chat.open().ask("Break")
    chat.page.get_by_text("The connection ended before the answer did.").wait_for()
    assert chat.last_answer().startswith("The beg")
    chat.shot("lost")
    chat.button("Continue").click()
    chat.shown("And the rest.").wait_for()
    chat.done()
    assert chat.page.locator(".problem").count() == 0


def test_an_error_in_the_stream(chat):
    chat.mock.answers["Crash"] = Script(text="So far", error_event={"message": "the engine crashed", "code": 500})
    chat.open().ask("Crash")
    chat.page.get_by_text("The server says: the engine crashed").wait_for()
    assert chat.last_answer() == "So far" and chat.button("Continue").is_enabled()


def test_a_model_that_is_being_loaded(chat):
    chat.mock.loaded = 0.25
    chat.open()
    chat.page.get_by_text("The model is being loaded: 25%").wait_for()
    chat.type("Early question")
    chat.answers.last.get_by_text("The model is being loaded: 25%").wait_for()
    chat.mock.loaded = 0.75
    chat.answers.last.get_by_text("The model is being loaded: 75%").wait_for()
    chat.shot("loading")
    chat.mock.loaded = 1.0
    chat.answers.last.locator(".markdown").get_by_text("Early question").wait_for()
    chat.done()
    assert len(chat.mock.requests) == 1 and chat.page.locator(".banner").count() == 0


def test_stop_while_a_model_is_being_loaded(chat):
    chat.mock.loaded = 0.5
    chat.open().type("Never mind")
    chat.answers.last.get_by_text("The model is being loaded: 50%").wait_for()
    chat.button("Stop").click()
    chat.done()
    chat.mock.loaded = 1.0
    chat.page.wait_for_timeout(1500)
    assert chat.mock.requests == []


def test_a_server_that_goes_away_and_comes_back(chat):
    chat.open().ask("Before")
    chat.mock.down = True
    chat.type("While it is gone")
    chat.page.get_by_text("Check that nibble serve is still running").first.wait_for()
    chat.done()
    chat.shot("gone")
    chat.mock.down = False
    # Nobody has to reload.
    chat.page.locator(".banner").wait_for(state="detached")
    chat.button("Try again").click()
    chat.answers.last.locator(".markdown").get_by_text("While it is gone").wait_for()


def test_an_api_key(chat):
    chat.mock.key = "s3cret-key"
    chat.open()
    dialog = chat.page.get_by_role("dialog", name="This server asks for a key")
    dialog.wait_for()
    field = chat.page.get_by_label("API key")
    assert field.evaluate("e => e === document.activeElement") and field.get_attribute("type") == "password"
    chat.page.keyboard.insert_text("wrong")
    chat.page.keyboard.press("Enter")
    chat.page.get_by_text("The server did not accept this key.").wait_for()
    chat.shot("key")
    field.fill("s3cret-key")
    chat.page.keyboard.press("Enter")
    dialog.wait_for(state="detached")
    chat.ask("Inside")
    assert chat.last_answer() == "Inside"
    chat.page.reload()
    chat.ask("Still inside")
    assert chat.page.get_by_role("dialog").count() == 0
    # A key that was changed at the server is asked for again, and the question is not lost.
    chat.mock.key = "another"
    chat.type("Outside")
    dialog.wait_for()
    field.fill("another")
    chat.page.keyboard.press("Enter")
    dialog.wait_for(state="detached")
    chat.button("Try again").click()
    chat.answers.last.locator(".markdown").get_by_text("Outside").wait_for()
