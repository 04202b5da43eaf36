"""Stop, continue, regenerate, edit, and the alternatives they make."""

from mock import Script


def numbered(chat):
    """Has every answer be another one."""
    count = iter(range(1, 100))
    return lambda body: Script(text=f"Answer {next(count)}.", delay=0.005)


def test_stop_and_continue(chat):
    chat.mock.answers["Count"] = lambda body: (
        Script(text=" and the end.")
        if body["messages"][-1]["role"] == "assistant"
        else Script(text=" ".join(str(n) for n in range(500)), delay=0.03)
    )
    chat.open().type("Count")
    chat.shown("10 11").wait_for()
    chat.shot("writing")
    chat.button("Stop").click()
    chat.done()
    assert chat.box.evaluate("e => e === document.activeElement"), "the button is gone, and the focus with it"
    chat.wait(lambda: chat.mock.cancelled == 1, "the server notices that nobody listens any more")
    begun = chat.last_answer()
    assert begun.startswith("0 1 2") and "499" not in begun
    assert chat.page.get_by_text("Stopped.", exact=True).first.is_visible()
    chat.shot("stopped")
    chat.button("Continue").click()
    chat.shown("and the end.").wait_for()
    chat.done()
    last = chat.mock.requests[-1]["messages"][-1]
    assert last["role"] == "assistant" and last["content"].strip() == begun
    assert chat.last_answer() == f"{last['content']} and the end."
    assert chat.button("Continue").count() == 0
    # It was continued, not answered again.
    assert chat.answers.count() == 1 and chat.button("Next alternative").count() == 0


def test_a_stopped_reasoning_is_continued(chat):
    chat.mock.answers["Think"] = lambda body: (
        Script(text="Done.")
        if body["messages"][-1]["role"] == "assistant"
        else Script(reasoning="step " * 300, text="never", delay=0.02)
    )
    chat.open().type("Think")
    chat.shown("step step step").wait_for()
    chat.page.keyboard.press("Escape")
    chat.done()
    chat.button("Continue").click()
    chat.shown("Done.").wait_for()
    last = chat.mock.requests[-1]["messages"][-1]
    assert last["content"] == "" and last["reasoning_content"].startswith("step step")


def test_an_answer_of_the_greatest_length_can_be_continued(chat):
    chat.mock.answers["Tell"] = Script(text="Once upon", finish="length")
    chat.open().ask("Tell")
    assert chat.page.get_by_text("The answer is as long as allowed.").is_visible()
    assert chat.button("Continue").is_enabled()


def test_regenerate_keeps_the_old_answer(chat):
    chat.mock.answers["Again"] = numbered(chat)
    chat.open().ask("Again")
    chat.button("Regenerate").click()
    chat.shown("Answer 2.").wait_for()
    chat.done()
    chat.button("Regenerate").click()
    chat.shown("Answer 3.").wait_for()
    chat.done()
    assert "3/3" in chat.answers.last.inner_text()
    chat.button("Previous alternative").click()
    assert chat.last_answer() == "Answer 2." and "2/3" in chat.answers.last.inner_text()
    chat.button("Previous alternative").click()
    assert chat.last_answer() == "Answer 1."
    assert chat.button("Previous alternative").is_disabled()
    assert chat.page.get_by_role("img", name="Alternative 1 of 3").is_visible()
    chat.button("Next alternative").click()
    assert chat.last_answer() == "Answer 2."


def test_an_edit_branches(chat):
    chat.open().ask("First question")
    chat.ask("Second question")
    chat.questions.first.hover()
    chat.button("Edit", chat.questions.first).click()
    editor = chat.page.get_by_role("textbox", name="Edit your message. The old one is kept as an alternative.")
    assert editor.input_value() == "First question"
    assert editor.evaluate("e => e === document.activeElement")
    chat.shot("editing")
    chat.page.keyboard.press("Control+a")
    chat.page.keyboard.insert_text("Another question")
    chat.page.keyboard.press("Enter")
    chat.shown("Another question").last.wait_for()
    chat.done()
    assert chat.questions.count() == 1 and chat.answers.count() == 1
    assert [message["content"] for message in chat.mock.requests[-1]["messages"]] == ["Another question"]
    assert "2/2" in chat.questions.first.inner_text()
    chat.shot("branch")
    # Back to the old branch, with all that followed there.
    chat.button("Previous alternative").click()
    assert chat.texts(chat.questions.locator(".bubble")) == ["First question", "Second question"]
    # What is asked now follows the branch that is shown.
    chat.ask("Third question")
    sent = [message["content"] for message in chat.mock.requests[-1]["messages"] if message["role"] == "user"]
    assert sent == ["First question", "Second question", "Third question"]
    # And all of it is there after a reload.
    chat.page.reload()
    chat.questions.nth(2).wait_for()
    assert chat.texts(chat.questions.locator(".bubble")) == sent
    chat.button("Next alternative").click()
    assert chat.texts(chat.questions.locator(".bubble")) == ["Another question"]


def test_an_edited_answer_is_what_the_model_reads(chat):
    chat.open().ask("What is it?")
    chat.button("Edit", chat.answers.last).click()
    chat.page.keyboard.press("Control+a")
    chat.page.keyboard.insert_text("It is green.")
    chat.page.keyboard.press("Enter")
    chat.page.keyboard.insert_text("And round.")
    chat.button("Save").click()
    assert chat.last_answer() == "It is green.\nAnd round."
    assert "2/2" in chat.answers.last.inner_text()
    chat.ask("Sure?")
    assert chat.mock.requests[-1]["messages"][1]["content"] == "It is green.\nAnd round."


def test_leaving_the_editor_changes_nothing(chat):
    chat.open().ask("Stay")
    chat.box.focus()
    chat.page.keyboard.press("ArrowUp")
    chat.page.keyboard.insert_text(" or go")
    chat.page.keyboard.press("Escape")
    assert chat.texts(chat.questions.locator(".bubble")) == ["Stay"]
    assert len(chat.mock.requests) == 1
    assert chat.box.evaluate("e => e === document.activeElement")


def test_an_answer_goes_on_while_another_conversation_is_shown(chat):
    chat.mock.answers["Slow"] = Script(text=" ".join(str(n) for n in range(60)), delay=0.02)
    chat.open().type("Slow")
    chat.shown("3 4").wait_for()
    chat.button("New conversation").click()
    chat.ask("Meanwhile")
    assert chat.last_answer() == "Meanwhile"
    chat.page.get_by_role("button", name="Slow", exact=True).click()
    chat.shown("58 59").wait_for()
    chat.done()
    assert chat.answers.count() == 1
