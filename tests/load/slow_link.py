"""A slow way to a server: relays connections with a delay each way, and so many bytes a second each way.

    slow_link.py PORT HOST:PORT SECONDS BYTES_A_SECOND
"""

import asyncio
import sys
import time

port, target, delay, rate = int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
host, _, far = target.rpartition(":")


async def read(source, pieces):
    free = time.monotonic()
    while piece := await source.read(16384):
        # When the line has sent all of it, and it has arrived.
        free = max(free, time.monotonic()) + len(piece) / rate
        await asyncio.sleep(max(free - time.monotonic() - 0.05, 0))
        await pieces.put((free + delay, piece))
    await pieces.put((0, None))


async def write(target, pieces):
    while True:
        when, piece = await pieces.get()
        if piece is None:
            break
        await asyncio.sleep(max(when - time.monotonic(), 0))
        target.write(piece)
        await target.drain()
    target.close()


async def relay(near_in, near_out):
    far_in, far_out = await asyncio.open_connection(host, int(far))
    there, back = asyncio.Queue(64), asyncio.Queue(64)
    both = [read(near_in, there), write(far_out, there), read(far_in, back), write(near_out, back)]
    await asyncio.gather(*both, return_exceptions=True)


async def main():
    server = await asyncio.start_server(relay, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


asyncio.run(main())
