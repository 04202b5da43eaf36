"""Clients of all manners: those that ask and read, and those that stall, leave, break off, or send nonsense.

Each client takes one manner after the other. What the server owes to each of them is checked: a right answer to a valid
request, an error of the right status to a wrong one, and to those that leave nothing.
"""

import asyncio
import json
import random
import time
from collections import Counter

from client import Connection, ask


class Crowd:
    def __init__(self, port, texts, args):
        self.port = port
        self.texts = texts
        self.args = args
        self.rng = random.Random(2)
        self.until = time.monotonic() + args.minutes * 60
        self.done = Counter()
        self.faults = []
        self.n_opened = 0
        self.known = {}
        # A body that is larger than accepted takes memory on both sides.
        self.huge = asyncio.Semaphore(1)

    async def run(self):
        await asyncio.gather(self.connections(), *(self.client() for _ in range(self.args.clients)))

    def summary(self):
        answers = self.done["right answers"]
        rest = ", ".join(f"{n} {name}" for name, n in sorted(self.done.items()) if name != "right answers")
        return f"{answers} right answers; {rest}; {self.n_opened} connections opened and left"

    def fault(self, text):
        self.faults.append(text)

    async def client(self):
        manners = [(self.asks, 40), (self.streams, 20), (self.leaves_midway, 12), (self.leaves_at_once, 6)]
        manners += [(self.stalls, 4), (self.wrong_json, 6), (self.wrong_types, 6), (self.too_large, 2), (self.overflows, 1)]
        manners += [(self.half_request, 3), (self.slow_headers, 2), (self.nonsense, 2)]
        functions, weights = zip(*manners)
        while time.monotonic() < self.until:
            manner = self.rng.choices(functions, weights)[0]
            try:
                await manner()
            except OSError as error:
                self.fault(f"{manner.__name__}: {error}")

    async def connections(self):
        """Opens connections and leaves them, as many as there are to be, evenly over the time."""
        began, total = time.monotonic(), self.args.connections
        while self.n_opened < total:
            share = (time.monotonic() - began) / (self.until - began)
            due = total if share >= 1 else int(total * share)
            opened = await asyncio.gather(
                *(asyncio.open_connection("127.0.0.1", self.port) for _ in range(min(due - self.n_opened, 50)))
            )
            for i, (_, writer) in enumerate(opened):
                if i % 2:
                    writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                writer.transport.abort() if i % 3 == 0 else writer.close()
            self.n_opened += len(opened)
            await asyncio.sleep(0.05)

    def request(self):
        """Returns a valid request: its path, body, number of written tokens, and how to read usage."""
        prompt = self.texts.text(self.rng.randrange(200), self.rng.choice([5, 20, 60, 150]))
        n = self.rng.randrange(1, 25)
        messages = [{"role": "user", "content": prompt}]
        base = {"temperature": 0, "ignore_eos": True, "max_tokens": n}
        kind = self.rng.randrange(4)
        if kind == 0:
            return "/v1/completions", {**base, "prompt": prompt}, n
        if kind == 1:
            return "/v1/chat/completions", {**base, "messages": messages}, n
        if kind == 2:
            return "/completion", {**base, "prompt": prompt}, n
        return "/v1/messages", {"model": "m", "max_tokens": n, "temperature": 0, "messages": messages}, n

    def check(self, path, body, n, response):
        """Checks an answer: its length, and that the prompt has as many tokens as the last time."""
        if response.status == 429:
            self.done["refused for a full queue"] += 1
            return
        answer = response.json()
        if response.status != 200 or not isinstance(answer, dict):
            self.fault(f"{path}: {response.status} {response.error} {response.body[:200]!r}")
            return
        if path == "/completion":
            n_prompt, n_written = answer["tokens_evaluated"], answer["tokens_predicted"]
        elif path == "/v1/messages":
            usage = answer["usage"]
            n_prompt = usage["input_tokens"] + (usage.get("cache_read_input_tokens") or 0)
            n_prompt += usage.get("cache_creation_input_tokens") or 0
            n_written = usage["output_tokens"]
        else:
            n_prompt, n_written = answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]
        # Anthropic's API has no way to ignore the end of a text.
        is_right = 1 <= n_written <= n if path == "/v1/messages" else n_written == n
        key = (path, json.dumps(body.get("messages") or body.get("prompt")))
        if not is_right or self.known.setdefault(key, n_prompt) != n_prompt:
            self.fault(f"{path}: {n_written} of {n} tokens, after {n_prompt}, once {self.known[key]}")
        self.done["right answers"] += 1

    async def asks(self):
        path, body, n = self.request()
        self.check(path, body, n, await ask(self.port, path, body, timeout=120))

    def long_stream(self, n):
        prompt = self.texts.text(self.rng.random(), 20)
        body = {"prompt": prompt, "max_tokens": n, "ignore_eos": True, "stream": True}
        return {**body, "stream_options": {"include_usage": True}}

    async def streams(self):
        body = self.long_stream(20)
        response = await ask(self.port, "/v1/completions", body, timeout=120)
        if response.status == 429:
            self.done["refused for a full queue"] += 1
        elif not response.has_ended_properly() or response.usage().get("completion_tokens") != 20:
            self.fault(f"stream: {response.status} {response.error} {response.body[-300:]!r}")
        else:
            self.done["right answers"] += 1

    async def begun(self, n):
        connection = await Connection.open(self.port)
        connection.send("POST", "/v1/completions", json.dumps(self.long_stream(n)).encode())
        return connection

    async def leaves_midway(self):
        """Leaves a stream after some bytes of it."""
        connection = await self.begun(300)
        most = self.rng.randrange(200, 5000)

        def on_part(connection):
            if connection.response.n_bytes > most:
                connection.abort() if most % 2 else connection.close()

        connection.on_part = on_part
        await connection.finish(120)
        connection.abort()
        self.done["left midway"] += 1

    async def leaves_at_once(self):
        """Leaves before there is an answer, which is no stream."""
        connection = await Connection.open(self.port)
        path, body, _ = self.request()
        connection.send("POST", path, json.dumps(body).encode())
        await asyncio.sleep(self.rng.random() * 0.05)
        connection.abort() if self.rng.random() < 0.5 else connection.close()
        self.done["left at once"] += 1

    async def stalls(self):
        """Reads nothing for a while. The answer is whole nevertheless, unless the server loses patience."""
        connection = await self.begun(100)
        await asyncio.sleep(self.rng.random() * 0.1)
        connection.stall()
        await asyncio.sleep(self.rng.choice([0.5, 2, 5]))
        connection.go_on()
        response = await connection.finish(120)
        connection.abort()
        if response.status == 429:
            self.done["refused for a full queue"] += 1
        elif not response.has_ended_properly():
            self.fault(f"stalled stream: {response.status} {response.error} {response.body[-200:]!r}")
        self.done["stalled"] += 1

    async def refused(self, name, path, body, statuses, **more):
        response = await ask(self.port, path, body, timeout=90, **more)
        error = response.json()
        if response.status not in statuses or not isinstance(error, dict) or "error" not in error:
            self.fault(f"{name}: {response.status} {response.error} {response.body[:200]!r}, not {statuses}")
        self.done[name] += 1

    async def wrong_json(self):
        whole = json.dumps({"prompt": "a", "max_tokens": 3}).encode()
        bodies = [whole[:-1], b"", b"{", b"[1,2", b"\xff\xfe{}", b"nul", whole + b"}", b"[" * 5000, b'{"prompt": "\\ud800"']
        await self.refused("bad JSON", self.path(), self.rng.choice(bodies), {400})

    def path(self):
        return self.rng.choice(["/v1/completions", "/v1/chat/completions", "/v1/messages", "/completion", "/v1/responses"])

    async def wrong_types(self):
        bodies = [
            ("/v1/completions", {"prompt": {"a": 1}}),
            ("/v1/completions", {"prompt": "a", "max_tokens": "many"}),
            ("/v1/completions", {"prompt": "a", "temperature": [1]}),
            ("/v1/completions", {"prompt": "a", "n": -3}),
            ("/v1/completions", {"prompt": [99999999]}),
            ("/v1/chat/completions", {"messages": "Hello"}),
            ("/v1/chat/completions", {"messages": [{"role": 7, "content": "a"}]}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image"}]}]}),
            ("/v1/chat/completions", {"messages": []}),
            ("/v1/messages", {"model": "m", "messages": [{"role": "user", "content": "a"}]}),
            ("/v1/responses", {"input": 5}),
            ("/completion", {"prompt": None}),
            ("/tokenize", {"content": 1.5}),
            ("/v1/embeddings", {"input": [[]]}),
            ("/v1/completions", {"prompt": self.texts.text("long", self.args.ctx * 2)}),
            ("/v1/completions", [1, 2]),
        ]
        path, body = self.rng.choice(bodies)
        await self.refused("wrong types", path, body, {400, 404})

    async def too_large(self):
        """Announces more than is accepted."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = f"POST {self.path()} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {100 << 20}\r\n\r\n{{".encode())
        answer = await asyncio.wait_for(reader.read(4096), 30)
        writer.transport.abort()
        if b" 413 " not in answer.split(b"\r\n")[0]:
            self.fault(f"a body of 100 MiB: {answer[:200]!r}")
        self.done["too large"] += 1

    async def overflows(self):
        """Sends more than is accepted in chunks, without announcing it."""
        async with self.huge:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            head = f"POST {self.path()} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
            answer = b""
            try:
                for _ in range(34):
                    writer.write(chunk)
                    await asyncio.wait_for(writer.drain(), 30)
                answer = await asyncio.wait_for(reader.read(4096), 30)
            except ConnectionError:
                # It may close before everything was sent.
                answer = b"HTTP/1.1 413 "
            except asyncio.TimeoutError:
                answer = b"nothing within 30 s"
            writer.transport.abort()
            if b" 413 " not in answer.split(b"\r\n")[0]:
                self.fault(f"33 MiB in chunks: {answer[:200]!r}")
            self.done["overflowing"] += 1

    async def half_request(self):
        """Sends a part of a body, and waits or leaves."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = f"POST {self.path()} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        writer.write(f'{head}Content-Length: 100\r\n\r\n{{"prompt": "a'.encode())
        await asyncio.sleep(self.rng.random() * 3)
        if self.rng.random() < 0.5:
            # Only this half of the connection: the server may answer still.
            writer.write_eof()
            await asyncio.wait_for(reader.read(4096), 90)
        writer.transport.abort()
        self.done["half requests"] += 1

    async def slow_headers(self):
        """Sends headers letter by letter. The server may close, and must within its patience of 30 s."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        waits_for_it = self.rng.random() < 0.2
        until = time.monotonic() + (45 if waits_for_it else 2)
        while time.monotonic() < until and not reader.at_eof():
            writer.write(b"a")
            try:
                await asyncio.wait_for(reader.read(4096), 0.5)
            except asyncio.TimeoutError:
                continue
            except ConnectionError:
                break
        else:
            if waits_for_it and not reader.at_eof():
                self.fault("headers that never end were waited for longer than 45 s")
        writer.transport.abort()
        self.done["slow headers"] += 1

    async def nonsense(self):
        """Sends what is not HTTP."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        heads = [b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"POST / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\nHost\r\n\r\n"]
        heads.append(b"A" * 70000)
        writer.write(self.rng.choice(heads) + b"\r\n\r\n")
        try:
            await asyncio.wait_for(reader.read(4096), 40)
        except ConnectionError:
            pass
        except asyncio.TimeoutError:
            self.fault("what is not HTTP has no answer and no end")
        writer.transport.abort()
        self.done["nonsense"] += 1
