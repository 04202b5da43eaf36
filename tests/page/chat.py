"""The page as a person uses it: with roles and names, as a screen reader sees them, and with real clicks and keys."""

import json
import re
from pathlib import Path


class Chat:
    """A window with the page."""

    def __init__(self, page, mock, shots):
        self.page, self.mock, self.shots = page, mock, shots
        self.dialogs, self.outside, self.faults = [], [], []
        page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))
        page.on("request", self.watch)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        # Also what a Content-Security-Policy stopped, which no request shows.
        page.add_init_script(
            "addEventListener('securitypolicyviolation', e => (window.stopped ??= []).push("
            "e.violatedDirective + ' ' + e.blockedURI + ' ' + e.sample))"
        )

    def watch(self, request):
        if not request.url.startswith((self.mock.url, "data:", "blob:")):
            self.outside.append(request.url)

    def open(self, at=""):
        self.page.goto(f"{self.mock.url}/{at}")
        self.box.wait_for()
        return self

    @property
    def box(self):
        return self.page.locator("#box")

    @property
    def answers(self):
        return self.page.locator("article.answer")

    @property
    def questions(self):
        return self.page.locator("article.question")

    @property
    def conversations(self):
        return self.page.locator("nav .open")

    def shown(self, text):
        """Returns where a text stands among the messages: what screen readers are told has it, too."""
        return self.page.get_by_role("main").get_by_text(text)

    def button(self, name, within=None):
        return (within or self.page).get_by_role("button", name=name, exact=True)

    def type(self, text):
        """Types a text and sends it."""
        self.box.click()
        self.page.keyboard.insert_text(text)
        self.page.keyboard.press("Enter")

    def ask(self, text):
        """Sends a text, and waits until it is answered."""
        before = len(self.mock.requests)
        self.type(text)
        self.wait(lambda: len(self.mock.requests) > before, "the request arrives")
        self.done()

    def done(self):
        """Waits until nothing is being written."""
        self.page.get_by_role("button", name=re.compile("^(Stop|停止)$")).wait_for(state="detached", timeout=60000)
        self.page.wait_for_timeout(50)

    def wait(self, condition, what, seconds=10):
        for _ in range(seconds * 50):
            if condition():
                return
            self.page.wait_for_timeout(20)
        raise AssertionError(f"waited {seconds} s in vain: {what}")

    def texts(self, locator):
        """Returns what is visible of each element, without what is only for screen readers."""
        return [text.strip() for text in locator.all_inner_texts()]

    def last_answer(self):
        return self.answers.last.locator(".markdown").inner_text().strip()

    def said(self):
        """Returns what screen readers were told."""
        return self.page.locator("#speaker p").all_text_contents()

    def stored(self, name):
        return json.loads(self.page.evaluate(f"JSON.stringify(localStorage.getItem('nibble.{name}'))") or "null")

    def shot(self, name):
        if self.shots:
            Path(self.shots).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=f"{self.shots}/{name}.png")

    def overflows(self):
        """Returns the elements that make the window scroll sideways."""
        return self.page.evaluate("""() => {
          const most = document.documentElement.clientWidth;
          if (document.documentElement.scrollWidth <= most && !document.querySelector('.messages')) return [];
          const wide = (e) => {
            for (let p = e.parentElement; p; p = p.parentElement) {
              if (['auto', 'scroll', 'hidden', 'clip'].includes(getComputedStyle(p).overflowX)
                  && !p.matches('.messages, html, body')) return false;
            }
            const r = e.getBoundingClientRect();
            return r.width > 0 && r.right > most + 1 && getComputedStyle(e).visibility === 'visible';
          };
          return [...document.querySelectorAll('body *')].filter(wide).map((e) => e.tagName + '.' + e.className);
        }""")

    def clean(self):
        """Asserts that nothing ran, nothing left, and nothing broke."""
        assert self.dialogs == [], f"dialogs: {self.dialogs}"
        assert self.outside == [], f"requests to elsewhere: {self.outside}"
        assert self.faults == [], f"errors in the page: {self.faults}"
        assert self.page.evaluate("window.owned") is None, "a script of an answer ran"
