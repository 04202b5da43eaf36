"""A server for the page's development and tests: the real page, and answers from a script instead of a model.

The page comes from a folder (`--page DIR`), or from a running nibble (`--server URL`), with the headers that it sends.
Everything below /v1 is scripted, so that a test knows what arrives and when. By hand:

    tests/page/mock.py --page src/serve/page/bundle --port 8099
"""

import argparse
import json
import mimetypes
import re
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

# What `nibble serve` sends with the page.
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types dompurify; "
        "frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}


@dataclass
class Script:
    """An answer: its text, and all that can go wrong with it."""

    text: str = ""
    reasoning: str = ""
    #: Seconds between two pieces.
    delay: float = 0.0
    #: Seconds before the first.
    wait: float = 0.0
    finish: str = "stop"
    timings: bool = True
    cached: int = 0
    #: Tokens of the prompt that were read, and all, as the server tells them while it reads.
    reading: list = field(default_factory=list)
    #: An error instead of an answer: status, body, headers.
    error: tuple | None = None
    #: Number of pieces after which the connection ends; None for never.
    dies_after: int | None = None
    #: An error object in the stream, after all pieces.
    error_event: dict | None = None


def pieces(text):
    """Cuts a text as a tokenizer would, roughly."""
    return re.findall(r"[一-鿿]{1,2}|\s?[^\s一-鿿]{1,5}|\s", text)


class Mock:
    """The server. Tests change its fields between requests."""

    def __init__(self, page=None, server=None, port=0):
        self.page, self.server = page, server
        self.answers = {}
        self.models = ["yi-6b-chat-q4_k_m"]
        self.props = {
            "default_generation_settings": {"n_ctx": 4096, "params": {"temperature": 0.8, "top_k": 40, "top_p": 0.95}}
        }
        #: An API key that is asked for; None for none.
        self.key = None
        #: How much of the model is loaded.
        self.loaded = 1.0
        #: Whether connections are refused as if nobody was there.
        self.down = False
        #: Requests to /v1/chat/completions: their bodies.
        self.requests = []
        #: Number of answers whose client went away.
        self.cancelled = 0
        mock = self

        class Handler(MockHandler):
            pass

        Handler.mock = mock
        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def script_for(self, body):
        """Returns the script for a request: by the person's last message, or an echo of it."""
        messages = body["messages"]
        last = next(message["content"] for message in reversed(messages) if message["role"] == "user")
        script = self.answers.get(last)
        if callable(script):
            return script(body)
        return script or Script(text=last)


class MockHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    mock: Mock

    def log_message(self, *args):
        pass

    def do_GET(self):
        path = self.path.split("?")[0]
        if self.is_down():
            return
        if path == "/health":
            ready = self.mock.loaded >= 1
            body = {"status": "ok"} if ready else {"status": "loading", "progress": self.mock.loaded}
            return self.json(200 if ready else 503, body)
        if path.startswith("/v1/") or path == "/props":
            if self.refused():
                return None
            if path == "/v1/models":
                return self.json(200, {"object": "list", "data": [{"id": name} for name in self.mock.models]})
            if path == "/props":
                return self.json(200, self.mock.props)
            return self.json(404, {"error": {"message": f"no route {path}", "type": "not_found_error"}})
        return self.static(path)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.is_down() or self.refused():
            return
        self.mock.requests.append(body)
        script = self.mock.script_for(body)
        if script.error:
            return self.json(*script.error)
        try:
            self.stream(script)
        except (BrokenPipeError, ConnectionResetError):
            self.mock.cancelled += 1

    def is_down(self):
        # Closing without a word is what a browser sees of a server that ended.
        if self.mock.down:
            self.close_connection = True
            self.connection.close()
        return self.mock.down

    def refused(self):
        """Answers a request that has no key, or comes too early."""
        mock = self.mock
        if mock.key and self.headers.get("authorization") != f"Bearer {mock.key}":
            self.json(401, {"error": {"message": "Invalid API Key", "type": "authentication_error", "code": 401}})
            return True
        if mock.loaded < 1:
            error = {"message": "the model is being loaded", "type": "unavailable_error", "code": 503}
            self.json(503, {"error": error, "progress": mock.loaded})
            return True
        return False

    def json(self, status, body, headers=None):
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": len(data), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)

    def static(self, path):
        if self.mock.server:
            return self.forwarded(path)
        root = Path(self.mock.page).resolve()
        file = (root / ("index.html" if path == "/" else path.removeprefix("/page/"))).resolve()
        if not file.is_relative_to(root) or not file.is_file():
            return self.json(404, {"error": {"message": "not found"}})
        kind = mimetypes.guess_type(file.name)[0] or "font/woff2"
        return self.bytes(200, file.read_bytes(), {**HEADERS, "content-type": f"{kind}; charset=utf-8"})

    def forwarded(self, path):
        try:
            with urllib.request.urlopen(self.mock.server + path) as response:
                status, data, headers = response.status, response.read(), response.headers
        except urllib.error.HTTPError as error:
            status, data, headers = error.code, error.read(), error.headers
        dropped = {"content-length", "transfer-encoding", "connection", "date", "content-encoding"}
        return self.bytes(status, data, {name: value for name, value in headers.items() if name.lower() not in dropped})

    def bytes(self, status, data, headers):
        self.send_response(status)
        for name, value in {**headers, "content-length": len(data)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)

    def event(self, data):
        text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
        part = f"data: {text}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        self.wfile.flush()

    def chunk(self, **fields):
        self.event({"object": "chat.completion.chunk", "model": self.mock.models[0], "choices": [], **fields})

    def delta(self, finish=None, **delta):
        self.chunk(choices=[{"index": 0, "delta": delta, "finish_reason": finish}])

    def stream(self, script):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.delta(role="assistant", content="")
        for done, total in script.reading:
            self.chunk(prompt_progress={"total": total, "cache": 0, "processed": done, "time_ms": 1})
            time.sleep(max(script.delay, 0.5))
        time.sleep(script.wait)
        thoughts = [("reasoning_content", piece) for piece in pieces(script.reasoning)]
        parts = thoughts + [("content", piece) for piece in pieces(script.text)]
        for number, (name, piece) in enumerate(parts):
            if script.dies_after is not None and number >= script.dies_after:
                self.close_connection = True
                self.connection.close()
                return
            self.delta(**{name: piece})
            time.sleep(script.delay)
        if script.error_event:
            self.event({"error": script.error_event})
        else:
            self.end(script, len(parts))
            self.event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def end(self, script, written):
        self.delta(finish=script.finish)
        cached = script.cached
        details = {"cached_tokens": cached}
        usage = {"prompt_tokens": 120 + cached, "completion_tokens": written, "prompt_tokens_details": details}
        timings = {
            "cache_n": cached,
            "prompt_n": 120,
            "prompt_ms": 480.0,
            "predicted_n": written,
            "predicted_ms": written * 43.0,
        }
        self.chunk(usage=usage, **({"timings": timings} if script.timings else {}))


DEMONSTRATION = Script(
    reasoning="The person wants to see what the page can show. A table, a formula and some code will do.",
    text="""## What you see

A **formula**: $e^{i\\pi} + 1 = 0$, and a larger one:

$$\\int_{-\\infty}^{\\infty} e^{-x^2}\\,dx = \\sqrt{\\pi}$$

```python
def fib(n: int) -> int:
    "Returns the n-th Fibonacci number."
    return n if n < 2 else fib(n - 1) + fib(n - 2)
```

| type | bits | size |
|:--|--:|--:|
| `Q4_K` | 4.5 | 19.5 GB |
| `Q8_0` | 8.5 | 36.5 GB |
""",
    delay=0.03,
    reading=[(400, 1200), (800, 1200), (1200, 1200)],
    cached=300,
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", help="folder of the bundle")
    parser.add_argument("--server", help="address of a nibble that serves the page")
    parser.add_argument("--port", type=int, default=8099)
    args = parser.parse_args()
    mock = Mock(page=args.page, server=args.server, port=args.port)
    mock.script_for = lambda body: DEMONSTRATION
    print(f"http://127.0.0.1:{args.port}/")
    threading.Event().wait()


if __name__ == "__main__":
    main()
