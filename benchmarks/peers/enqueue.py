"""Enqueue tasks as a Django process would, and print the cost: `python -m benchmarks.peers.enqueue WAY N`.

BENCH_PEER names the peer. A third argument is the number of warm-up tasks.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module

import django


def main(way: str, n: int, warm_up: int = 0) -> None:
    django.setup()
    from benchmarks.peers.contenders import named

    enqueue = getattr(import_module(f"benchmarks.peers.tasks.{named(os.environ['BENCH_PEER']).tasks}"), way)
    if warm_up:
        enqueue(warm_up)
    wall, cpu = time.perf_counter(), time.process_time()
    enqueue(n)
    print(json.dumps({"wall": (time.perf_counter() - wall) / n, "cpu": (time.process_time() - cpu) / n}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
