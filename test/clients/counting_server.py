#!/usr/bin/env python3
"""An asyncio server with threads: answers each line with the line and how many it has had on that connection.

Half of the answers are made in a pool of threads, and other threads keep busy with work of their own, whose result is checked.
"""

import asyncio
import concurrent.futures
import hashlib
import os
import sys
import threading
import time


def busy(block: bytes) -> None:
    """Computes the same thing again and again; it may not come out different."""
    first = hashlib.sha256(block).digest()
    while True:
        if hashlib.sha256(block).digest() != first:
            print("a thread computes something else", flush=True)
            os._exit(1)
        time.sleep(0.003)


def slowly(line: bytes, count: int) -> bytes:
    return b"%s %d\n" % (line, count)


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pool) -> None:
    loop = asyncio.get_running_loop()
    count = 0
    while line := await reader.readline():
        count += 1
        line = line.rstrip(b"\n")
        if count % 2:
            answer = await loop.run_in_executor(pool, slowly, line, count)
        else:
            answer = slowly(line, count)
        writer.write(answer)
        await writer.drain()
    writer.close()


async def ticker() -> None:
    """Timers of the loop must go on: a clock that jumps or stands still is found here."""
    last = time.monotonic()
    while True:
        await asyncio.sleep(0.05)
        now = time.monotonic()
        if not 0.04 < now - last < 30:
            print(f"a sleep of 50 ms took {now - last} s", flush=True)
            os._exit(1)
        last = now


async def main() -> None:
    port = int(sys.argv[1])
    for number in range(3):
        threading.Thread(target=busy, args=(bytes([number]) * 100000,), daemon=True).start()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        server = await asyncio.start_server(lambda reader, writer: serve(reader, writer, pool), None, port, backlog=1024)
        print("serving", flush=True)
        await asyncio.gather(server.serve_forever(), ticker())


asyncio.run(main())
