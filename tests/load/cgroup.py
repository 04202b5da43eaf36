"""A process in a memory cgroup: Linux, as root, version 1 or 2."""

import contextlib
import os
import time


@contextlib.contextmanager
def limited(limit):
    """Makes a cgroup of `limit` bytes of memory, without swap where the system has that limit. Yields its folder."""
    v1 = os.path.isdir("/sys/fs/cgroup/memory")
    group = f"{'/sys/fs/cgroup/memory' if v1 else '/sys/fs/cgroup'}/nibble-bench-{os.getpid()}"
    os.mkdir(group)
    try:
        names = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"] if v1 else ["memory.max", "memory.swap.max"]
        for name, value in zip(names, [limit, limit if v1 else 0]):
            if os.path.exists(f"{group}/{name}"):
                with open(f"{group}/{name}", "w") as file:
                    file.write(str(value))
        yield group
    finally:
        for _ in range(100):
            with contextlib.suppress(OSError):
                os.rmdir(group)
                break
            time.sleep(0.1)


def joining(group):
    """Returns what a child does before it runs its program, to be in the cgroup."""

    def join():
        with open(group + "/cgroup.procs", "w") as file:
            file.write("0")

    return join


def n_killed(group):
    """Returns how many processes of the cgroup were killed because memory was out."""
    for name in ("memory.events", "memory.oom_control"):
        with contextlib.suppress(OSError), open(f"{group}/{name}") as file:
            for line in file:
                words = line.split()
                if words[0] == "oom_kill":
                    return int(words[1])
    return 0


def uncache(path):
    """Takes a file out of the system's cache: who reads it next is charged for it."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
