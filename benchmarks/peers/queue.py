"""A stand-in for SQS in a separate process that delivers the messages it receives, for the local worker.

It implements the operations that the worker and its producer use. It never delivers a message twice, because
failing workers are not measured here.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from uuid import uuid4


@contextmanager
def running() -> Iterator[str]:
    """Run the queue server, and yield its URL."""
    with subprocess.Popen([sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()


def new_queue(endpoint: str) -> str:
    """Return the URL of a new, empty queue."""
    return f"{endpoint}/123456789012/{uuid4().hex}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Write the response in one piece. In several pieces, each call would wait for a TCP acknowledgement.
    wbufsize = -1

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        operation = self.headers["X-Amz-Target"].rpartition(".")[2]
        answer = _OPERATIONS[operation](_queues[request["QueueUrl"]], request)
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-amz-json-1.0")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


_Queue = deque[dict[str, Any]]
_queues: defaultdict[str, _Queue] = defaultdict(deque)


def _send(queue: _Queue, entry: dict[str, Any]) -> dict[str, str]:
    message_id = str(uuid4())
    queue.append(
        {
            "MessageId": message_id,
            "ReceiptHandle": message_id,
            "Body": entry["MessageBody"],
            "MD5OfBody": "",
            "Attributes": {"ApproximateReceiveCount": "1", "SentTimestamp": str(int(time.time() * 1000))},
            "MessageAttributes": entry.get("MessageAttributes", {}),
        }
    )
    return {"MessageId": message_id, "MD5OfMessageBody": ""}


def _send_batch(queue: _Queue, request: dict[str, Any]) -> dict[str, Any]:
    return {"Successful": [{"Id": entry["Id"], **_send(queue, entry)} for entry in request["Entries"]]}


def _receive(queue: _Queue, request: dict[str, Any]) -> dict[str, Any]:
    if not queue:
        time.sleep(min(request.get("WaitTimeSeconds", 0), 1))
    return {"Messages": [queue.popleft() for _ in range(min(len(queue), request["MaxNumberOfMessages"]))]}


def _delete(_: _Queue, request: dict[str, Any]) -> dict[str, Any]:
    return {"Successful": [{"Id": entry["Id"]} for entry in request["Entries"]]}


def _describe(_: _Queue, request: dict[str, Any]) -> dict[str, Any]:
    name = request["QueueUrl"].rpartition("/")[2]
    return {"Attributes": {"QueueArn": f"arn:aws:sqs:eu-west-1:123456789012:{name}", "VisibilityTimeout": "900"}}


_OPERATIONS = {
    "SendMessage": _send,
    "SendMessageBatch": _send_batch,
    "ReceiveMessage": _receive,
    "DeleteMessageBatch": _delete,
    "GetQueueAttributes": _describe,
}


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    # The parent process closes the pipe, or ends.
    sys.stdin.read()
