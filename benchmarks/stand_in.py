"""A stand-in for SQS in a separate process, which accepts every message and stores none, to measure clients.

It answers SendMessage and SendMessageBatch as SQS does, after a configurable latency, and accepts any number of
parallel requests. To stay cheap, it parses only the parts of a request that it needs for the response.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from http.client import HTTPConnection
from typing import Final

#: Ids of entries. In a body, which is JSON inside JSON, the quotes are escaped.
_ENTRY_ID: Final = re.compile(rb'(?<!\\)"Id": *"([^"]+)"')
_LENGTH: Final = re.compile(rb"\r\nContent-Length: *(\d+)", re.IGNORECASE)
_OPERATION: Final = re.compile(rb"\r\nX-Amz-Target: *AmazonSQS\.(\w+)", re.IGNORECASE)
#: The response of SQS to an accepted message; the values have the usual length.
_TAKEN: Final = {
    "MessageId": "5fea7756-0ea4-451a-a703-a558b933e274",
    "MD5OfMessageBody": "fafb00f5732ab283681e124bf8747ed1",
    "MD5OfMessageAttributes": "3ae8f24a165a8cedc005670c81a27295",
}


@dataclass(frozen=True, slots=True)
class StandIn:
    """The address of a running stand-in."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def queue_url(self) -> str:
        return f"{self.url}/123456789012/default"

    def requests(self) -> Counter[str]:
        """Return the number of requests of each kind since the last call."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", "/")
        counted = Counter(json.loads(connection.getresponse().read()))
        connection.close()
        return counted


@contextmanager
def running(*, latency: float = 0) -> Iterator[StandIn]:
    """Run a stand-in that answers after `latency` seconds."""
    command = [sys.executable, "-m", __name__ if __name__ != "__main__" else "benchmarks.stand_in"]
    with subprocess.Popen(
        [*command, "--latency", str(latency)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield StandIn(port=int(process.stdout.readline()))
        finally:
            process.stdin.close()


class _Connection(asyncio.Protocol):
    def __init__(self, latency: float, counted: Counter[str]) -> None:
        self.latency = latency
        self.counted = counted
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end]
            length = int(found[1]) if (found := _LENGTH.search(head)) else 0
            if len(self.buffer) < end + 4 + length:
                return
            body = self.buffer[end + 4 : end + 4 + length]
            self.buffer = self.buffer[end + 4 + length :]
            self.answer(head, body)

    def answer(self, head: bytes, body: bytes) -> None:
        operation = _OPERATION.search(head)
        if operation is None:
            self.transport.write(_response(json.dumps(self.counted)))
            self.counted.clear()
            return
        self.counted[operation[1].decode()] += 1
        answer = _answer_of_batch(tuple(_ENTRY_ID.findall(body))) if operation[1].endswith(b"Batch") else _answer()
        if self.latency:
            asyncio.get_running_loop().call_later(self.latency, self.transport.write, answer)
        else:
            self.transport.write(answer)


@cache
def _answer() -> bytes:
    return _response(json.dumps(_TAKEN))


@cache
def _answer_of_batch(ids: tuple[bytes, ...]) -> bytes:
    return _response(json.dumps({"Successful": [{"Id": entry_id.decode(), **_TAKEN} for entry_id in ids]}))


def _response(content: str) -> bytes:
    return (
        "HTTP/1.1 200 OK\r\n"
        "x-amzn-RequestId: 3c9d0c1e-7e5c-5b0a-9d0f-5a4f0e3d1b6a\r\n"
        "Date: Sun, 22 Nov 2026 12:00:00 GMT\r\n"
        "Content-Type: application/x-amz-json-1.0\r\n"
        f"Content-Length: {len(content)}\r\n"
        "connection: keep-alive\r\n\r\n"
        f"{content}"
    ).encode()


async def _serve(latency: float) -> None:
    loop = asyncio.get_running_loop()
    counted: Counter[str] = Counter()
    server = await loop.create_server(lambda: _Connection(latency, counted), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    # The parent process closes the pipe, or ends.
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=0)
    asyncio.run(_serve(parser.parse_args().latency))
