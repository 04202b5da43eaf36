"""Servers that are started, watched in /proc, and ended."""

import asyncio
import contextlib
import os
import re
import resource
import signal
import socket
import subprocess
import tempfile
import time

from client import ask

TICKS = os.sysconf("SC_CLK_TCK")
MIB = 1 << 20


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def cpu_seconds(pid):
    """Returns the seconds of CPU time that a process and its ended threads have taken; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory_bytes(pid):
    """Returns the resident memory of a process that is not of files; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/status") as file:
            found = re.search(r"^RssAnon:\s*(\d+) kB", file.read(), re.M)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def n_files(pid):
    """Returns how many files and sockets a process has open."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def children(pid):
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                with open(f"/proc/{name}/stat") as file:
                    state, parent = file.read().rpartition(")")[2].split()[:2]
                if int(parent) == pid and state != "Z":
                    found.append(int(name))
    return found


class Server:
    """A server in a process of its own. Its messages are in a file, of which the end is shown if it fails."""

    def __init__(self, name, command, port):
        self.name = name
        self.port = port
        self.log = tempfile.NamedTemporaryFile(prefix="serve-load-", suffix=".log")

        def no_core_files():
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, preexec_fn=no_core_files
        )

    @property
    def pid(self):
        return self.process.pid

    def engine(self):
        """Returns the process that runs the model: nibble's is a child, others are it themselves."""
        found = children(self.pid)
        return found[0] if found else None

    def cpu(self):
        """Returns the CPU seconds of the server itself, and of its engine."""
        engine = self.engine()
        return cpu_seconds(self.pid), cpu_seconds(engine) if engine else 0.0

    def last_words(self):
        with open(self.log.name, errors="replace") as file:
            return file.read()[-600:]

    async def ready(self, timeout=120.0):
        """Waits until the model is loaded."""
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            if self.process.poll() is not None:
                break
            health = await ask(self.port, "/health", timeout=5)
            states = [model.get("state") for model in (health.json() or {}).get("models", []) if isinstance(model, dict)]
            if health.status == 200 and all(state == "ready" for state in states):
                return
            await asyncio.sleep(0.05)
        raise SystemExit(f"{self.name} does not answer:\n{self.last_words()}")

    async def metrics(self):
        """Returns the figures of /metrics by their names. Nibble's are those of its only model."""
        text = (await ask(self.port, "/metrics")).body.decode()
        lines = re.findall(r"^([\w:]+)(?:\{model=[^}]*\})? ([-+.\deE]+)$", text, re.M)
        return {name: float(value) for name, value in lines}

    async def n_processing(self):
        """Returns how many sequences are in use, by /slots."""
        slots = (await ask(self.port, "/slots")).json()
        return sum(slot["is_processing"] for slot in slots)

    async def idle(self, timeout=15.0):
        """Waits until nothing is being done. Returns whether that came."""
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            figures = await self.metrics()
            busy = await self.n_processing() + figures["llamacpp:requests_processing"]
            if busy + figures["llamacpp:requests_deferred"] == 0:
                return True
            await asyncio.sleep(0.2)
        return False

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()


@contextlib.asynccontextmanager
async def running(name, command, port):
    """A server that is ready, and ends with the block."""
    server = Server(name, command, port)
    try:
        await server.ready()
        yield server
    finally:
        server.stop()


def nibble(args, *flags, port=None):
    """Returns `nibble serve` as `running` takes it. `args` has nibble, model, threads, port and ctx."""
    port = port or args.port or free_port()
    command = [args.nibble, "serve", args.model, "--port", str(port)]
    command += ["--threads", str(args.threads)] if args.threads else []
    return running("nibble", command + [str(flag) for flag in flags], port)


def llama_server(args, *flags, port=None):
    """Returns llama.cpp's server in the same way."""
    port = port or args.port or free_port()
    command = [args.llama_server, "-m", args.model, "--host", "127.0.0.1", "--port", str(port), "--metrics", "--slots"]
    command += ["--threads", str(args.threads)] if args.threads else []
    return running("llama-server", command + [str(flag) for flag in flags], port)


def built(root, path):
    """Returns the nibble to measure: the one that was named, or the one of this folder, which is built first."""
    if path:
        return path
    subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=root, check=True)
    return os.path.join(os.environ.get("CARGO_TARGET_DIR", f"{root}/target"), "release/nibble")
