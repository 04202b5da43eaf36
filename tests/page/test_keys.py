"""Without a mouse, with an input method, and with a screen reader."""

from mock import Script


def focused(chat):
    return chat.page.evaluate("document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent")


def test_a_whole_run_with_the_keyboard(chat):
    press, write = chat.page.keyboard.press, chat.page.keyboard.insert_text
    chat.mock.answers["Long"] = Script(text=" ".join(str(n) for n in range(500)), delay=0.03)
    chat.open()
    assert focused(chat) == "Write a message"
    write("One line")
    press("Shift+Enter")
    write("another line")
    press("Enter")
    chat.answers.last.wait_for()
    chat.done()
    assert chat.mock.requests[-1]["messages"][0]["content"] == "One line\nanother line"
    assert focused(chat) == "Write a message", "the focus stays where one writes"
    write("Long")
    press("Enter")
    chat.shown("5 6 7").wait_for()
    press("Escape")
    chat.done()
    assert chat.button("Continue").is_enabled()
    press("ArrowUp")
    assert focused(chat) == "Edit your message. The old one is kept as an alternative."
    press("Control+a")
    write("Short")
    press("Enter")
    chat.answers.last.locator(".markdown").get_by_text("Short").wait_for()
    chat.done()
    press("Control+k")
    chat.wait(lambda: focused(chat) == "Search titles and messages", "the search has the focus")
    write("one LINE")
    chat.page.get_by_text("Found in 1 of 1 conversation").wait_for()
    press("Control+Shift+O")
    chat.wait(lambda: focused(chat) == "Write a message", "the box has the focus")
    assert chat.questions.count() == 0
    press("Control+,")
    chat.page.get_by_role("dialog", name="Settings").wait_for()
    press("Escape")
    chat.page.get_by_role("dialog").wait_for(state="detached")
    press("Control+/")
    chat.page.get_by_role("dialog", name="Keyboard shortcuts").wait_for()
    chat.shot("shortcuts")
    press("Escape")
    chat.page.get_by_role("dialog").wait_for(state="detached")
    press("Control+Shift+S")
    assert not chat.page.locator("nav").is_visible()
    press("Control+Shift+S")
    assert chat.page.locator("nav").is_visible()
    chat.clean()


def test_tab_reaches_everything_and_shows_where_it_is(chat):
    chat.mock.answers["All"] = Script(
        text="```\ncode\n```\n\n| a | b |\n|---|---|\n| c | d |\n\n[link](http://example.com/)", reasoning="x"
    )
    chat.open().ask("All")
    chat.button("Regenerate").click()
    chat.wait(lambda: len(chat.mock.requests) == 2, "a second answer")
    chat.done()
    wanted = set(
        chat.page.evaluate("""() => [...document.querySelectorAll(
        'button, a[href], input, select, textarea, summary, [tabindex]')]
      .filter((e) => !e.disabled && !e.hidden && e.tabIndex >= 0 && e.getClientRects().length)
      .map((e, n) => { e.dataset.n = n; return String(n); })""")
    )
    chat.page.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(2 * len(wanted) + 5):
        chat.page.keyboard.press("Tab")
        state = chat.page.evaluate("""() => { const e = document.activeElement, r = e.getBoundingClientRect();
          const o = getComputedStyle(e), f = e.closest('.frame') && getComputedStyle(e.closest('.frame'));
          const marked = o.outlineStyle !== 'none' || (f && f.boxShadow !== 'none');
          const visible = r.width > 0 && r.height > 0;
          return { n: e.dataset?.n, marked, visible, name: e.outerHTML.slice(0, 120) }; }""")
        if state["n"] is None:
            continue
        reached.add(state["n"])
        assert state["marked"] and state["visible"], f"the focus cannot be seen on {state['name']}"
    missed = [chat.page.locator(f"[data-n='{n}']").evaluate("e => e.outerHTML.slice(0, 200)") for n in wanted - reached]
    assert not missed, missed


def test_every_control_has_a_name(chat):
    chat.mock.models = ["a", "b"]
    chat.open().ask("```\ncode\n```")
    for _ in range(2):
        nameless = chat.page.evaluate("""() =>
          [...document.querySelectorAll('button, a[href], input, select, textarea')]
          .filter((e) => !e.hidden && !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length))
          .map((e) => e.outerHTML.slice(0, 200))""")
        assert nameless == [], nameless
        chat.button("Settings").click() if _ == 0 else None
    assert chat.page.get_by_role("main", name="Messages").count() == 1
    chat.page.keyboard.press("Escape")
    assert chat.page.get_by_role("navigation", name="Conversations").is_visible()
    assert chat.page.get_by_role("article", name="You").is_visible()


def test_enter_that_chooses_a_word_does_not_send(chat):
    chat.open()
    chat.box.click()
    session = chat.page.context.new_cdp_session(chat.page)
    for text in ["n", "ni", "ni h", "ni hao"]:
        session.send("Input.imeSetComposition", {"text": text, "selectionStart": len(text), "selectionEnd": len(text)})
    # What a browser sends for the Enter that goes to the input method.
    press = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 229, "nativeVirtualKeyCode": 229}
    session.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", **press})
    chat.page.evaluate("""document.getElementById('box').dispatchEvent(
      new KeyboardEvent('keydown', { key: 'Enter', isComposing: true, bubbles: true, cancelable: true }))""")
    session.send("Input.insertText", {"text": "你好"})
    session.send("Input.dispatchKeyEvent", {"type": "keyUp", **press})
    chat.page.wait_for_timeout(200)
    assert chat.mock.requests == [] and chat.box.input_value() == "你好"
    # Escape that ends a composition stops nothing either.
    chat.page.keyboard.press("Enter")
    chat.answers.last.wait_for()
    chat.done()
    assert chat.mock.requests[-1]["messages"][-1]["content"] == "你好"


def test_a_screen_reader_hears_paragraphs_not_tokens(chat):
    paragraphs = [
        "The first paragraph has many words in it.",
        "The second one has a formula, $x^2$, as well.",
        "The third ends it.",
    ]
    chat.mock.answers["Read to me"] = Script(text="\n\n".join(paragraphs), delay=0.03)
    chat.open()
    chat.page.evaluate("""() => { window.heard = [];
      new MutationObserver((all) => all.forEach((m) => m.addedNodes.forEach((n) => window.heard.push(n.textContent))))
        .observe(document.getElementById('speaker'), { childList: true, subtree: true, characterData: true }); }""")
    chat.ask("Read to me")
    heard = [text for text in chat.page.evaluate("window.heard")]
    assert heard[0] == "The model is answering." and heard[-1] == "The answer is complete.", heard
    assert heard[1].strip() == paragraphs[0] and heard[3].strip() == paragraphs[2] and len(heard) == 5, heard
    assert "formula" in heard[2] and heard[2].count("x") == 1, heard[2]
    # The answer itself is not live.
    live = chat.page.evaluate(
        "[...document.querySelectorAll('main [aria-live], main[aria-live], main [role=log]')].length"
    )
    assert live == 0


def test_a_screen_reader_does_not_hear_other_conversations(chat):
    chat.mock.answers["Slow"] = Script(text="One.\n\nTwo.\n\n" + "and on " * 40, delay=0.05)
    chat.open().type("Slow")
    chat.shown("and on").wait_for()
    chat.button("New conversation").click()
    chat.page.wait_for_timeout(300)
    said = [text.strip() for text in chat.said()]
    assert said == ["The model is answering.", "One.", "Two."], said
    chat.page.get_by_role("button", name="Slow").first.click()
    chat.button("Stop").click()
    chat.done()
    chat.wait(lambda: "Stopped." in chat.said(), "it is said that the answer was stopped")


def test_motion_is_reduced_where_that_is_wanted(chat):
    chat.mock.answers["Wait"] = Script(text="x", wait=1.0)
    chat.open().type("Wait")
    dot = chat.page.locator(".dots i").first
    dot.wait_for()
    assert dot.evaluate("e => getComputedStyle(e).animationName") == "none"


test_motion_is_reduced_where_that_is_wanted.window = {"reduced_motion": "reduce"}
