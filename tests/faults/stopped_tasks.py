"""A task that tells a test that it runs, and goes on when the test says so."""

from __future__ import annotations

import socket

from lambda_tasks.decorators import lambda_task
from tests.app.models import Effect


@lambda_task(soft_timeout=20, hard_timeout=30)
def met(*, name: str, port: int) -> None:
    Effect.objects.create(name=name)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"here")
        connection.recv(1)
