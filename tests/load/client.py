"""An HTTP client for load: cheap enough that the client does not decide what a server can do.

Bytes are collected as they come, and taken apart only after the end. While they come, only the time of the first token is
noted. A connection can stall, and can be cut.
"""

import asyncio
import json
import re
import time

# The beginning of a text that is not empty, in an event of any of the APIs.
FIRST_TOKEN = re.compile(rb'"(?:content|text)": ?"[^"]')
DONE = "[DONE]"


class Response:
    """What came back. `error` says why it is not whole."""

    def __init__(self):
        self.status = None
        self.headers = {}
        self.body = b""
        self.began = time.monotonic()
        self.first = None  # seconds to the first token
        self.seconds = None  # seconds to the end
        self.error = None
        self.parts = []
        self.body_at = None  # offset of the body in all parts together
        self.n_bytes = 0

    def json(self):
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def events(self):
        """Returns the data of a stream's events: values, and DONE."""
        lines = (line[6:] for line in self.body.decode(errors="replace").split("\n") if line.startswith("data: "))
        return [DONE if line.strip() == DONE else json.loads(line) for line in lines]

    def usage(self):
        """Returns the usage of an answer of OpenAI's, in one piece or a stream; empty if there is none."""
        values = [self.json()] if not self.is_stream() else reversed(self.events())
        return next((v["usage"] for v in values if isinstance(v, dict) and v.get("usage")), {})

    def text(self):
        """Returns the text of a completion of OpenAI's, in one piece or a stream."""
        values = [self.json()] if not self.is_stream() else self.events()
        choices = (c for v in values if isinstance(v, dict) for c in v.get("choices", []))
        return "".join(c.get("text") or (c.get("message") or c.get("delta") or {}).get("content") or "" for c in choices)

    def is_stream(self):
        return self.headers.get("content-type", "").startswith("text/event-stream")

    def has_ended_properly(self):
        """Returns whether it is whole: a stream ends with DONE or an error, any other answer with its last byte."""
        if self.error or self.status is None:
            return False
        if not self.is_stream():
            return self.json() is not None
        try:
            events = self.events()
        except ValueError:
            return False
        return bool(events) and (events[-1] == DONE or (isinstance(events[-1], dict) and "error" in events[-1]))


class Connection(asyncio.Protocol):
    """A connection for one request after the other."""

    def __init__(self):
        self.transport = None
        self.response = None
        self.over = None
        self.is_open = False
        self.on_part = None

    @classmethod
    async def open(cls, port, timeout=10.0):
        loop = asyncio.get_running_loop()
        return (await asyncio.wait_for(loop.create_connection(cls, "127.0.0.1", port), timeout))[1]

    def connection_made(self, transport):
        self.transport = transport
        self.is_open = True

    def send(self, method, path, body=b"", headers=()):
        """Sends a request. `finish` waits for the answer."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self.transport.get_extra_info('peername')[1]}"]
        if body or method == "POST":
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers]
        self.response = Response()
        self.over = asyncio.get_running_loop().create_future()
        self.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    async def finish(self, timeout):
        response = self.response
        try:
            await asyncio.wait_for(self.over, timeout)
        except asyncio.TimeoutError:
            response.error = f"no end within {timeout:g} s"
            self.abort()
        response.seconds = time.monotonic() - response.began
        self._take_apart(response)
        return response

    def data_received(self, data):
        response = self.response
        if response is None:
            return
        response.parts.append(data)
        response.n_bytes += len(data)
        if response.body_at is None:
            self._read_head(response)
        if response.first is None and FIRST_TOKEN.search(data):
            response.first = time.monotonic() - response.began
        if self._is_whole(response) and not self.over.done():
            self.over.set_result(None)
        elif self.on_part:
            self.on_part(self)

    @staticmethod
    def _read_head(response):
        all_of_it = b"".join(response.parts)
        end = all_of_it.find(b"\r\n\r\n")
        if end < 0:
            return
        response.body_at = end + 4
        status, *lines = all_of_it[:end].decode("latin-1").split("\r\n")
        response.status = int(status.split(" ")[1])
        pairs = (line.partition(":") for line in lines)
        response.headers = {name.strip().lower(): value.strip() for name, _, value in pairs}

    @staticmethod
    def _is_whole(response):
        if response.body_at is None:
            return False
        length = response.headers.get("content-length")
        if length is not None:
            return response.n_bytes >= response.body_at + int(length)
        # JSON and events have no such line breaks, so that nothing but the last chunk looks like it.
        return b"".join(response.parts[-3:]).endswith(b"\r\n0\r\n\r\n")

    @staticmethod
    def _take_apart(response):
        if response.body_at is None:
            response.error = response.error or "no answer"
            return
        body = b"".join(response.parts)[response.body_at :]
        response.parts = []
        if response.headers.get("transfer-encoding") != "chunked":
            response.body = body
            return
        chunks = []
        while body:
            size, _, rest = body.partition(b"\r\n")
            try:
                n = int(size.partition(b";")[0], 16)
            except ValueError:
                break
            chunks.append(rest[:n])
            body = rest[n + 2 :]
        response.body = b"".join(chunks)

    def connection_lost(self, error):
        self.is_open = False
        if self.over and not self.over.done():
            if not (self.response.body_at is not None and self._ends_with_connection(self.response)):
                self.response.error = f"the connection was closed: {error or 'by the server'}"
            self.over.set_result(None)

    @staticmethod
    def _ends_with_connection(response):
        return "content-length" not in response.headers and response.headers.get("transfer-encoding") != "chunked"

    def stall(self):
        """Takes nothing more, until `go_on`."""
        if self.is_open:
            self.transport.pause_reading()

    def go_on(self):
        if self.is_open:
            self.transport.resume_reading()

    def abort(self):
        """Leaves, whatever is under way."""
        self.transport.abort()

    def close(self):
        self.transport.close()


async def ask(port, path, value=None, *, method=None, headers=(), timeout=120.0):
    """Sends one request on a connection of its own. Errors of the connection are in the response."""
    body = b"" if value is None else value if isinstance(value, bytes) else json.dumps(value).encode()
    try:
        connection = await Connection.open(port)
    except (OSError, asyncio.TimeoutError) as error:
        response = Response()
        response.error = f"no connection: {error}"
        return response
    try:
        connection.send(method or ("GET" if value is None else "POST"), path, body, (("Connection", "close"), *headers))
        return await connection.finish(timeout)
    finally:
        connection.close()
