"""Settings, and what of them is sent."""

from playwright.sync_api import expect

from mock import Script


def fill(chat, label, value):
    chat.page.get_by_label(label, exact=True).fill(value)


def test_only_what_was_set_is_sent(chat):
    chat.open().ask("Plain")
    names = {"model", "messages", "stream", "stream_options", "return_progress"}
    assert set(chat.mock.requests[-1]) == names
    chat.button("Settings").click()
    # The server's own values are shown where nothing is set.
    assert chat.page.get_by_label("Temperature", exact=True).get_attribute("placeholder") == "default: 0.8"
    system = chat.page.get_by_label("System prompt")
    low = system.bounding_box()["height"]
    assert low > 60, f"the box for the system prompt is {low} pixels high"
    system.fill("\n".join("You are a cook." for _ in range(10)))
    assert system.bounding_box()["height"] > 2 * low
    fill(chat, "System prompt", "You are a cook.")
    sampling = {
        "Temperature": "0.5",
        "Top P": "0.9",
        "Top K": "20",
        "Min P": "0.05",
        "Repeat penalty": "1.1",
        "Seed": "7",
        "Most tokens": "64",
    }
    for label, value in sampling.items():
        fill(chat, label, value)
    chat.shot("settings")
    chat.page.keyboard.press("Escape")
    chat.ask("Set")
    sent = chat.mock.requests[-1]
    assert sent["messages"][0] == {"role": "system", "content": "You are a cook."}
    expected = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 20,
        "min_p": 0.05,
        "repeat_penalty": 1.1,
        "seed": 7,
        "max_tokens": 64,
    }
    assert {name: sent[name] for name in expected} == expected
    # A reload loses none of it, and a new conversation begins with it.
    chat.page.reload()
    chat.box.wait_for()
    chat.button("New conversation").click()
    chat.ask("New")
    assert {name: chat.mock.requests[-1][name] for name in expected} == expected
    chat.button("Settings").click()
    chat.button("Reset to defaults").click()
    expect(chat.page.get_by_label("Temperature", exact=True)).to_have_value("")
    chat.page.keyboard.press("Escape")
    chat.ask("Reset")
    assert set(chat.mock.requests[-1]) == names
    # The first conversation has kept its own.
    chat.page.get_by_role("button", name="Plain", exact=True).click()
    chat.shown("Plain").first.wait_for()
    chat.ask("Old")
    assert chat.mock.requests[-1]["temperature"] == 0.5


def test_values_out_of_range_are_refused_in_words(chat):
    chat.open()
    chat.button("Settings").click()
    for label, value, sentence in [
        ("Temperature", "3", "Between 0 and 2."),
        ("Temperature", "warm", "Between 0 and 2."),
        ("Top K", "1.5", "A whole number between 0 and 1,000."),
        ("Most tokens", "0", "A whole number between 1 and 1,000,000."),
    ]:
        fill(chat, label, value)
        field = chat.page.get_by_label(label, exact=True)
        assert field.get_attribute("aria-invalid") == "true"
        assert sentence in chat.page.locator(f"#{field.get_attribute('id')}-complaint").inner_text()
    fill(chat, "Temperature", "0.2")
    assert chat.page.get_by_label("Temperature", exact=True).get_attribute("aria-invalid") is None
    chat.page.keyboard.press("Escape")
    chat.ask("Go")
    assert chat.mock.requests[-1]["temperature"] == 0.2
    assert "top_k" not in chat.mock.requests[-1] and "max_tokens" not in chat.mock.requests[-1]


def test_json_that_follows_a_schema(chat):
    chat.mock.answers["Data"] = Script(text='{"name": "Yi", "size": 34}')
    chat.open()
    chat.button("Settings").click()
    chat.page.get_by_label("Form of the answer").select_option("schema")
    fill(chat, "JSON schema", '{"type": "obj')
    chat.page.get_by_text("This is not a JSON schema yet:").wait_for()
    fill(chat, "JSON schema", '{"type": "object", "properties": {"name": {"type": "string"}}}')
    chat.shot("schema")
    chat.page.keyboard.press("Escape")
    chat.ask("Data")
    form = chat.mock.requests[-1]["response_format"]
    assert form["type"] == "json_schema" and form["json_schema"]["strict"] is True
    assert form["json_schema"]["schema"]["properties"]["name"] == {"type": "string"}
    # Such an answer is code, whatever it holds.
    assert chat.answers.last.locator(".code .hljs-attr").count() == 2
    chat.button("Settings").click()
    chat.page.get_by_label("Form of the answer").select_option("object")
    chat.page.keyboard.press("Escape")
    chat.ask("Data")
    assert chat.mock.requests[-1]["response_format"] == {"type": "json_object"}


def test_one_of_several_models(chat):
    chat.mock.models = ["yi-6b", "yi-34b"]
    chat.open().ask("First")
    assert chat.mock.requests[-1]["model"] == "yi-6b"
    chat.page.get_by_role("combobox", name="Model").select_option("yi-34b")
    chat.ask("Second")
    assert chat.mock.requests[-1]["model"] == "yi-34b"
    chat.page.reload()
    chat.ask("Third")
    assert chat.mock.requests[-1]["model"] == "yi-34b"


def test_language_and_theme_are_kept(chat):
    chat.open()
    chat.button("Settings").click()
    chat.page.get_by_label("Theme").select_option("dark")
    chat.page.get_by_label("Language").select_option("zh")
    chat.page.get_by_role("heading", name="设置", exact=True).wait_for()
    chat.shot("settings-chinese-dark")
    chat.page.reload()
    chat.page.get_by_role("heading", name="有什么可以帮忙的？").wait_for()
    assert chat.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 29)"
