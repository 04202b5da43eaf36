"""Conversations: streaming, reasoning, formulas, code, and what is shown under an answer."""

from mock import DEMONSTRATION, Script

CHINESE = {"locale": "zh-CN"}

YI = """零一万物的 **Yi-34B** 是一个双语模型。下面是它的要点：

1. **“中英双语”**训练，约 3 万亿词元；
2. 上下文长度为 4K，也有 200K 的版本；
3. 量化到 4 比特后约 20 GB，可在笔记本电脑上运行。

> 学而时习之，不亦说乎？

行内公式 $E=mc^2$，以及代码 `nibble serve`：

```bash
# 启动本地服务器
nibble serve yi-34b-chat-q4_k_m.gguf --ctx 4096
```
"""


def test_a_conversation_in_english(chat):
    chat.mock.answers["Show me everything"] = DEMONSTRATION
    chat.open()
    assert chat.page.get_by_role("heading", name="What can I help with?").is_visible()
    chat.shot("welcome")
    chat.type("Show me everything")
    chat.page.get_by_text("Reading 400 of 1,200 tokens").wait_for()
    chat.page.get_by_text("Reasoning …").wait_for()
    chat.done()
    answer = chat.answers.last
    assert answer.locator(".katex").count() == 2
    assert answer.locator(".katex-display").count() == 1
    assert answer.locator("table td").count() == 6
    assert answer.locator(".hljs-keyword").count() >= 3
    assert answer.get_by_role("heading", name="What you see").is_visible()
    # The reasoning is folded when the answer begins, and opens with a click.
    thought = chat.page.get_by_text("A table, a formula and some code will do.")
    assert not thought.is_visible()
    chat.page.get_by_text("Reasoning", exact=True).click()
    assert thought.is_visible()
    statistics = answer.locator(".statistics").inner_text()
    for part in ["23 tokens/s", "120 read in 0.5 s", "300 from the cache"]:
        assert part in statistics, statistics
    assert "Context: " in chat.page.locator(".composer .hint").inner_text()
    chat.ask("And a second question")
    sent = chat.mock.requests[-1]
    assert [message["role"] for message in sent["messages"]] == ["user", "assistant", "user"]
    assert sent["messages"][1]["content"] == DEMONSTRATION.text
    assert "reasoning_content" not in sent["messages"][1]
    assert sent["stream"] and sent["stream_options"] == {"include_usage": True}
    assert sent["model"] == "yi-6b-chat-q4_k_m"
    chat.page.locator(".messages").evaluate("e => e.scrollTop = 0")
    chat.shot("english")
    chat.clean()


def test_a_conversation_in_chinese(chat):
    chat.mock.answers["介绍一下 Yi-34B"] = Script(
        text=YI, reasoning="用户想了解模型的基本情况。", delay=0.005, cached=64
    )
    chat.open()
    assert chat.page.locator("html").get_attribute("lang") == "zh-Hans"
    assert chat.page.get_by_role("heading", name="有什么可以帮忙的？").is_visible()
    chat.ask("介绍一下 Yi-34B")
    answer = chat.answers.last
    # Emphasis that ends in a quotation mark before a letter, which CommonMark alone would not see.
    assert answer.locator("strong").all_inner_texts() == ["Yi-34B", "“中英双语”"]
    assert answer.locator(".markdown").get_attribute("lang") == "zh-Hans"
    assert "23 词元/秒" in answer.locator(".statistics").inner_text()
    assert "缓存命中 64 个" in answer.locator(".statistics").inner_text()
    chat.ask("谢谢！")
    assert chat.last_answer() == "谢谢！"
    assert chat.texts(chat.conversations) == ["介绍一下 Yi-34B"]
    chat.shot("chinese")
    chat.clean()


test_a_conversation_in_chinese.window = CHINESE


def test_an_answer_grows_without_making_its_beginning_again(chat):
    text = "\n\n".join(f"Paragraph {n}." for n in range(30))
    chat.mock.answers["Grow"] = Script(text=text, delay=0.01)
    chat.open().type("Grow")
    chat.shown("Paragraph 0.").wait_for()
    chat.page.evaluate("window.first = document.querySelector('.markdown .block')")
    chat.done()
    assert chat.page.evaluate("window.first.isConnected && window.first.textContent.trim()") == "Paragraph 0."
    assert chat.answers.last.locator(".block").count() == 30


def test_code_is_copied(chat):
    chat.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    chat.open().ask("```rust\nfn main() {}\n```")
    chat.button("Copy code").click()
    assert chat.page.evaluate("navigator.clipboard.readText()") == "fn main() {}\n"
    chat.button("Copied").wait_for()
    chat.button("Copy", chat.answers.last).click()
    assert chat.page.evaluate("navigator.clipboard.readText()") == "```rust\nfn main() {}\n```"


def test_code_is_copied_where_the_browser_has_no_clipboard(chat):
    # As on a page from another computer of the network, without TLS.
    chat.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    chat.page.add_init_script("navigator.clipboard.writeText = () => Promise.reject(new Error('insecure'))")
    chat.open().ask("```\nold way\n```")
    chat.button("Copy code").click()
    chat.button("Copied").wait_for()
    assert chat.page.evaluate("navigator.clipboard.readText()") == "old way\n"


def test_prices_are_no_formulas(chat):
    chat.open().ask("It costs $5 and not $6, or $5-$10. But $x_1$ and \\(y\\) are.")
    assert chat.answers.last.locator(".katex").count() == 2
    assert "$5 and not $6, or $5-$10" in chat.last_answer()


def test_a_formula_that_is_none_stays_text(chat):
    chat.open().ask("$\\frac{1$ and $$\\unknown{x}$$")
    assert chat.answers.last.locator(".math.source").all_inner_texts() == ["\\frac{1", "\\unknown{x}"]


def test_the_end_stays_in_view_until_the_person_scrolls(chat):
    chat.mock.answers["Long"] = Script(text="\n\n".join(f"Line {n}." for n in range(120)), delay=0.012)
    chat.open().type("Long")
    chat.shown("Line 60.").wait_for()
    scroller = chat.page.locator(".messages")
    rest = "e => e.scrollHeight - e.scrollTop - e.clientHeight"
    chat.wait(lambda: scroller.evaluate(rest) < 100, "the end is in view", seconds=1)
    chat.shown("Line 80.").wait_for()
    chat.wait(lambda: scroller.evaluate(rest) < 100, "the end is still in view", seconds=1)
    scroller.hover()
    chat.page.mouse.wheel(0, -900)
    chat.page.wait_for_timeout(150)
    top = scroller.evaluate("e => e.scrollTop")
    chat.done()
    assert abs(scroller.evaluate("e => e.scrollTop") - top) < 5, "the page scrolled away from what was being read"
    button = chat.button("Go to the end").bounding_box()
    assert 500 < button["y"] < 700, f"the button lies above the message box, not at {button}"
    chat.shot("to-end")
    chat.button("Go to the end").click()
    assert scroller.evaluate(rest) < 100


def test_speed_is_measured_here_if_the_server_does_not_say_it(chat):
    chat.mock.answers["Slow"] = Script(text="one two three four five six", delay=0.1, timings=False, cached=20)
    chat.open().ask("Slow")
    statistics = chat.answers.last.locator(".statistics").inner_text()
    rate = float(statistics.split(" tokens/s")[0])
    assert 3 < rate < 12, statistics
    assert "120 read" in statistics and "20 from the cache" in statistics


def test_text_that_is_nested_too_deeply_is_shown_as_it_is(chat):
    for mark in ["> ", "- ", "1. "]:
        chat.mock.answers[f"Deep {mark.strip()}"] = Script(text=f"Before\n\n{mark * 200}the end\n\nAfter")
        chat.mock.answers[f"Flat {mark.strip()}"] = Script(text=f"{mark * 10}the end")
    chat.open()
    for mark in ["> ", "- ", "1. "]:
        chat.ask(f"Deep {mark.strip()}")
        said = chat.last_answer()
        assert said.startswith("Before") and "the end" in said and said.endswith("After"), said
        assert mark.strip() in said, "it is shown as it was written"
        chat.ask(f"Flat {mark.strip()}")
        assert chat.answers.last.locator("blockquote, li").count() == 10
    chat.clean()
