"""What the browser keeps: reload, search, rename, delete, export, import."""

import json
import tempfile
from pathlib import Path

from mock import Script


def test_a_reload_keeps_everything(chat):
    chat.open().ask("Keep this")
    address = chat.page.url
    chat.page.reload()
    chat.answers.last.wait_for()
    assert chat.page.url == address and chat.last_answer() == "Keep this"
    chat.button("New conversation").click()
    assert chat.questions.count() == 0
    chat.page.go_back()
    chat.answers.last.wait_for()
    assert chat.last_answer() == "Keep this"


def test_an_answer_that_was_being_written_survives_a_reload(chat):
    chat.mock.answers["Long"] = Script(text=" ".join(str(n) for n in range(400)), delay=0.02)
    chat.open().type("Long")
    chat.shown("100 101").wait_for()
    chat.page.reload()
    chat.answers.last.wait_for()
    assert chat.last_answer().startswith("0 1 2 3 ")
    assert chat.button("Continue").is_enabled()


def test_search_finds_titles_and_messages(chat):
    chat.mock.answers["Where is Beijing?"] = Script(text="In the north of China, near the Great Wall.")
    chat.open().ask("Where is Beijing?")
    for text in ["Bake bread", "量子计算是什么"]:
        chat.button("New conversation").click()
        chat.ask(text)
    search = chat.page.get_by_role("searchbox", name="Search titles and messages")
    search.fill("GREAT wall")
    chat.page.get_by_text("Found in 1 of 3 conversations").wait_for()
    assert chat.conversations.count() == 1 and "near the Great Wall" in chat.conversations.first.inner_text()
    chat.shot("search")
    chat.conversations.first.click()
    chat.shown("near the Great Wall.").wait_for()
    search.fill("量子")
    chat.conversations.filter(has_text="量子计算是什么").wait_for()
    assert chat.conversations.count() == 1
    search.fill("nowhere")
    chat.page.get_by_text("Nothing found for “nowhere”.").wait_for()
    search.fill("")
    assert chat.conversations.count() == 3


def test_rename_and_delete(chat):
    chat.open().ask("Old name")
    chat.button("Rename “Old name”").click()
    chat.page.keyboard.press("Control+a")
    chat.page.keyboard.insert_text("新的标题")
    chat.page.keyboard.press("Enter")
    chat.page.get_by_role("dialog").wait_for(state="detached")
    assert chat.texts(chat.conversations) == ["新的标题"] and chat.page.title() == "新的标题 · nibble"
    chat.page.reload()
    chat.conversations.first.wait_for()
    chat.button("Delete “新的标题”").click()
    chat.shot("delete")
    chat.page.keyboard.press("Escape")
    chat.page.get_by_role("dialog").wait_for(state="detached")
    assert chat.conversations.count() == 1
    chat.button("Delete “新的标题”").click()
    chat.button("Delete", chat.page.get_by_role("dialog")).click()
    chat.conversations.first.wait_for(state="detached")
    assert chat.questions.count() == 0
    chat.page.reload()
    chat.page.get_by_text("Your conversations will be listed here.").wait_for()


def exported(chat, button):
    with chat.page.expect_download() as download:
        button.click()
    path = Path(tempfile.mkdtemp()) / download.value.suggested_filename
    download.value.save_as(path)
    return path


def test_export_and_import(chat):
    chat.open().ask("One")
    chat.button("Regenerate").click()
    chat.wait(lambda: len(chat.mock.requests) == 2, "a second answer")
    chat.done()
    chat.button("New conversation").click()
    chat.ask("二")
    path = exported(chat, chat.button("Export all"))
    assert path.name.startswith("nibble-") and path.suffix == ".json"
    file = json.loads(path.read_text())
    assert file["format"] == "nibble conversations" and file["version"] == 1
    assert [len(each["messages"]) for each in file["conversations"]] == [2, 3]
    single = json.loads(exported(chat, chat.button("Export “二”")).read_text())
    assert [each["title"] for each in single["conversations"]] == ["二"]
    # What is there already stays as it is.
    chat.page.set_input_files("#import", path)
    chat.page.get_by_text("Imported 0 of 2 conversations.").wait_for()
    chat.button("Dismiss").click()
    for title in ["One", "二"]:
        row = chat.page.locator("nav li", has_text=title)
        row.hover()
        chat.button(f"Delete “{title}”").click()
        chat.button("Delete", chat.page.get_by_role("dialog")).click()
        row.wait_for(state="detached")
    chat.page.set_input_files("#import", path)
    chat.page.get_by_text("Imported 2 of 2 conversations.").wait_for()
    assert sorted(chat.texts(chat.conversations)) == ["One", "二"]
    chat.page.get_by_role("button", name="One", exact=True).click()
    assert "2/2" in chat.answers.last.inner_text()
    # The file that is written from them says the same.
    again = json.loads(exported(chat, chat.button("Export all")).read_text())
    assert again["conversations"] == file["conversations"]


def test_files_that_are_none_are_refused_in_words(chat):
    chat.open().ask("Here before")
    good = {"id": "a", "title": "t", "created": 1, "updated": 1, "first": None, "settings": {}, "messages": []}
    message = {"id": "m", "parent": None, "role": "user", "content": "x", "created": 1}
    wrap = lambda *conversations, version=1: {
        "format": "nibble conversations",
        "version": version,
        "conversations": conversations,
    }
    cases = [
        ("{", "This file is not JSON."),
        ("[]", "has no conversations of nibble"),
        (json.dumps({"format": "other", "conversations": []}), "has no conversations of nibble"),
        (json.dumps(wrap(good, version=9)), "has version 9 of the format"),
        (json.dumps(wrap(good, {**good, "id": "../x"})), "Conversation 2 in this file is damaged."),
        (
            json.dumps(wrap({**good, "messages": [{**message, "role": "system"}]})),
            "Conversation 1 in this file is damaged.",
        ),
        (
            json.dumps(wrap({**good, "messages": [{**message, "parent": "gone"}]})),
            "Conversation 1 in this file is damaged.",
        ),
        (json.dumps(wrap({**good, "messages": [message, message]})), "Conversation 1 in this file is damaged."),
        (json.dumps(wrap(None)), "Conversation 1 in this file is damaged."),
    ]
    for text, sentence in cases:
        chat.page.set_input_files(
            "#import", {"name": "x.json", "mimeType": "application/json", "buffer": text.encode()}
        )
        chat.page.get_by_text(sentence).wait_for()
        chat.button("Dismiss").click()
        chat.page.locator(".notice").wait_for(state="detached")
    assert chat.texts(chat.conversations) == ["Here before"]


def test_messages_that_answer_each_other_in_a_circle_harm_nothing(chat):
    base = {"role": "user", "content": "x", "created": 1}
    messages = [{**base, "id": "a", "parent": "b", "next": "b"}, {**base, "id": "b", "parent": "a", "next": "a"}]
    record = {
        "id": "c",
        "title": "circle",
        "first": "a",
        "messages": messages,
        "settings": {"sampling": {"temperature": "hot"}},
    }
    file = {"format": "nibble conversations", "version": 1, "conversations": [record]}
    chat.open()
    buffer = json.dumps(file).encode()
    chat.page.set_input_files("#import", {"name": "x.json", "mimeType": "application/json", "buffer": buffer})
    chat.page.get_by_role("button", name="circle", exact=True).click()
    chat.ask("Still alive")
    assert chat.last_answer() == "Still alive" and "temperature" not in chat.mock.requests[-1]


def test_two_windows_see_the_same(chat):
    chat.open().ask("In the first window")
    second = type(chat)(chat.page.context.new_page(), chat.mock, None)
    second.open()
    second.page.get_by_role("button", name="In the first window", exact=True).click()
    second.ask("In the second window")
    chat.shown("In the second window").last.wait_for()
    assert chat.answers.count() == 2
    second.button("Delete “In the first window”").click()
    second.button("Delete", second.page.get_by_role("dialog")).click()
    chat.conversations.first.wait_for(state="detached")
    assert chat.questions.count() == 0


def test_without_storage_the_page_works_and_says_so(chat):
    chat.page.add_init_script("""
      indexedDB.open = () => { throw new DOMException('no', 'SecurityError'); };
      Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError'); } });
    """)
    chat.open()
    chat.page.get_by_text("conversations end with this window").wait_for()
    chat.ask("Works")
    assert chat.last_answer() == "Works"


def test_a_full_storage_is_said(chat):
    chat.page.add_init_script("""
      IDBObjectStore.prototype.put = function () { throw new DOMException('full', 'QuotaExceededError'); };
    """)
    chat.open().ask("Too much")
    chat.page.get_by_text("The browser’s storage is full").wait_for()
    assert chat.last_answer() == "Too much"
