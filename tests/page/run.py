#!/usr/bin/env python3
"""Tests of the page in headless Chromium, with real clicks and keys.

    tests/page/run.py                 the committed bundle, with scripted answers
    tests/page/run.py --server URL    the page and headers of a running nibble, and a conversation with its model
    tests/page/run.py --shots DIR     also saves screenshots
    tests/page/run.py WORD ...        only tests with one of these words in their names

Needs Chromium (Debian: apt-get install chromium fonts-noto-cjk) and playwright (pip install playwright; it drives that
Chromium, and needs no browser of its own).
"""

import argparse
import importlib
import shutil
import sys
import time
import traceback
from pathlib import Path

from playwright.sync_api import sync_playwright

from chat import Chat
from mock import Mock

MODULES = [
    "test_conversation",
    "test_tree",
    "test_keeping",
    "test_walls",
    "test_settings",
    "test_problems",
    "test_keys",
    "test_look",
]
BUNDLE = Path(__file__).resolve().parents[2] / "src/serve/page/bundle"


def tests_of(modules, words):
    """Yields the functions that are called test_*, in the order in which they are written."""
    for name in modules:
        for key, value in vars(importlib.import_module(name)).items():
            if key.startswith("test_") and (not words or any(word in key for word in words)):
                yield key.removeprefix("test_"), value


def run(test, browser, args):
    """Runs a test in a window of its own, with a server of its own."""
    mock = Mock(page=args.page, server=args.server)
    options = {
        "viewport": {"width": 1200, "height": 800},
        "locale": "en-US",
        "color_scheme": "light",
        **getattr(test, "window", {}),
    }
    context = browser.new_context(**options)
    context.set_default_timeout(20000)
    try:
        chat = Chat(context.new_page(), mock, args.shots)
        test(chat)
        assert chat.faults == [], f"errors in the page: {chat.faults}"
        notices = chat.page.locator(".notice").all_inner_texts()
        assert not any("went wrong" in text for text in notices), notices
    finally:
        context.close()
        mock.http.shutdown()
        mock.http.server_close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--server", help="address of a running nibble")
    parser.add_argument("--page", default=str(BUNDLE), help="folder of the bundle")
    parser.add_argument("--shots", help="folder for screenshots")
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("chromium-browser"))
    args = parser.parse_args()
    if not args.chromium:
        sys.exit("run.py: there is no chromium. Install it, or name it with --chromium")
    modules = MODULES + (["test_live"] if args.server else [])
    passed = failed = 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
        for name, test in tests_of(modules, args.words):
            began = time.monotonic()
            try:
                run(test, browser, args)
                passed += 1
                print(f"ok      {name} ({time.monotonic() - began:.1f} s)", flush=True)
            except Exception:
                failed += 1
                print(f"FAILED  {name}\n{traceback.format_exc()}", flush=True)
        browser.close()
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed or not passed else 0)


if __name__ == "__main__":
    main()
