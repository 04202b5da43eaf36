"""A conversation with the model of a running server: whatever it says, the page has to show it. Only with --server."""


def test_a_conversation_with_a_real_model(chat):
    chat.mock.url = chat.mock.server
    chat.open()
    chat.button("Settings").click()
    chat.page.get_by_label("Most tokens", exact=True).fill("12")
    chat.page.keyboard.press("Escape")
    for number in [1, 2]:
        chat.type("Hello! 你好！")
        chat.answers.nth(number - 1).locator(".statistics").wait_for(timeout=60000)
        assert chat.page.locator(".problem").count() == 0, chat.page.locator(".problem").inner_text()
        assert "tokens written" in chat.answers.nth(number - 1).locator(".statistics").inner_text()
    assert "from the cache" in chat.answers.last.locator(".statistics").inner_text()
    chat.button("Regenerate").last.click()
    chat.page.get_by_text("2/2").wait_for(timeout=60000)
    chat.clean()
