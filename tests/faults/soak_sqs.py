"""Run moto's SQS server in a separate process, which ends with the process that started it.

It prints its address, and runs until its standard input ends.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from moto.server import ThreadedMotoServer
from moto.sqs.models import Queue


def make_deletes_atomic() -> None:
    """Prevent moto from losing messages that arrive while another message is being deleted.

    moto builds a new list of the remaining messages, and loses messages that are added to the old list meanwhile.
    """
    delete = Queue.delete_message

    def delete_alone(self: Any, receipt_handle: str) -> None:
        with self._messages_lock:
            delete(self, receipt_handle)

    Queue.delete_message = delete_alone  # type: ignore[method-assign]


def main() -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    make_deletes_atomic()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    sys.stdout.write(f"http://{host}:{port}\n")
    sys.stdout.flush()
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main()
