"""How it looks: phones, dark, long words, contrast."""

from mock import DEMONSTRATION, Script

PHONE = {"viewport": {"width": 375, "height": 667}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}

WIDE = f"""A word without an end: {"Donaudampfschifffahrtsgesellschaft" * 6} and an address
https://example.com/{"path/" * 40}

```python
{"x = " + " + ".join(f"variable_{n}" for n in range(40))}
```

| {" | ".join(f"column {n}" for n in range(12))} |
|{"---|" * 12}
| {" | ".join("value " * 3 for n in range(12))} |

$$\\sum_{{n=1}}^{{\\infty}} {" + ".join(f"a_{{{n}}}" for n in range(60))}$$

一段没有空格的很长的中文文本{"，用来检查换行是否正确" * 12}。

- a list
  - in a list
    1. with numbers

> a quotation

`{"inline_code_that_is_long_" * 8}`
"""

CONTRAST = """() => {
  const linear = (v) => (v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  const lum = (c) => { const [r, g, b] = c.map((v) => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b; };
  const parse = (c) => (c.match(/[\\d.]+/g) ?? []).map(Number);
  const back = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] === 1) return c.slice(0, 3); } return [255, 255, 255]; };
  const faults = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || e.closest('.hidden, :disabled, .katex-mathml')) continue;
    const s = getComputedStyle(e);
    if (!e.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    const [a, b] = [lum(parse(s.color).slice(0, 3)), lum(back(e))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    const name = e.tagName + '.' + e.className + ' ' + e.textContent.slice(0, 30);
    if (ratio < 4.5) faults.push(ratio.toFixed(2) + ' ' + name);
  }
  return [...new Set(faults)];
}"""


def test_a_phone(chat):
    chat.mock.answers["Wide"] = Script(text=WIDE, reasoning="thinking " * 20, cached=100)
    chat.open().ask("Wide")
    assert chat.overflows() == []
    assert chat.page.evaluate("document.documentElement.scrollWidth") == 375
    column = chat.page.locator(".messages").evaluate("e => e.scrollWidth - e.clientWidth")
    assert column == 0, f"the messages are {column} pixels too wide"
    chat.shot("phone")
    chat.page.locator(".messages").evaluate("e => e.scrollTop = 0")
    chat.shot("phone-top")
    # The list lies over the page, and goes away again.
    assert not chat.page.locator("nav").is_visible()
    chat.button("Show conversations").tap()
    chat.page.locator("nav").wait_for(state="visible")
    chat.page.wait_for_timeout(300)
    assert chat.overflows() == []
    chat.shot("phone-list")
    chat.button("New conversation").tap()
    chat.page.wait_for_timeout(300)
    assert not chat.page.locator("nav").is_visible() and chat.questions.count() == 0
    chat.button("Settings").tap()
    chat.page.wait_for_timeout(100)
    assert chat.overflows() == []
    chat.shot("phone-settings")
    # What a finger has to hit is large enough.
    chat.page.keyboard.press("Escape")
    small = chat.page.evaluate("""() => [...document.querySelectorAll('.page button')].filter((e) => {
      const r = e.getBoundingClientRect();
      return r.width && (r.width < 32 || r.height < 32); }).map((e) => e.outerHTML)""")
    assert small == [], small


test_a_phone.window = PHONE


def test_the_smallest_window(chat):
    chat.open().ask(WIDE)
    assert chat.overflows() == []
    assert chat.page.locator(".messages").evaluate("e => e.scrollWidth - e.clientWidth") == 0
    assert chat.box.is_visible()


# A window of 1280 pixels at 400 %, which WCAG asks for.
test_the_smallest_window.window = {"viewport": {"width": 320, "height": 480}}


def test_wide_things_in_a_wide_window(chat):
    chat.mock.answers["Wide"] = Script(text=WIDE)
    chat.open().ask("Wide")
    assert chat.overflows() == []
    chat.page.locator(".messages").evaluate("e => e.scrollTop = 0")
    chat.shot("wide")


def test_contrast_in_light(chat):
    chat.mock.answers["Show"] = DEMONSTRATION
    chat.mock.answers["Fail"] = Script(error=(500, {"error": {"message": "broken"}}))
    chat.open().ask("Show")
    assert chat.page.evaluate(CONTRAST) == []
    chat.ask("Fail")
    assert chat.page.evaluate(CONTRAST) == []


def test_contrast_in_dark(chat):
    test_contrast_in_light(chat)
    assert chat.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 29)"
    chat.shot("dark")
    chat.page.locator(".messages").evaluate("e => e.scrollTop = 0")
    chat.shot("dark-top")
    chat.button("Settings").click()
    assert chat.page.evaluate(CONTRAST) == []
    chat.shot("dark-settings")


test_contrast_in_dark.window = {"color_scheme": "dark"}


def test_light_can_be_chosen_where_the_system_is_dark(chat):
    chat.open()
    chat.button("Settings").click()
    chat.page.get_by_label("Theme").select_option("light")
    assert chat.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


test_light_can_be_chosen_where_the_system_is_dark.window = {"color_scheme": "dark"}
