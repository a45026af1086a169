"""The Runtime API, spoken to as a runtime client would: over HTTP."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest

from lambda_tasks.local.runtime_api import Answered, Crashed, Errored, InvocationResult, RuntimeApi, TimedOut

ARN = "arn:aws:lambda:eu-west-1:000000000000:function:shop"
PREFIX = "/2018-06-01/runtime"
PATIENCE = 10  # seconds: only a test that is broken waits so long

Invoke = Callable[..., "Future[InvocationResult]"]


@pytest.fixture
def api() -> Iterator[RuntimeApi]:
    with closing(RuntimeApi(function_arn=ARN)) as api:
        yield api


@pytest.fixture
def invoke(api: RuntimeApi) -> Iterator[Invoke]:
    with ThreadPoolExecutor(1) as pool:
        yield lambda event, seconds=PATIENCE: pool.submit(api.invoke, event, timeout_seconds=seconds)
        api.process_ended("the test is over")


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes


def request(api: RuntimeApi, method: str, path: str, body: Any = None, **headers: str) -> Reply:
    with closing(http.client.HTTPConnection(api.address, timeout=PATIENCE)) as connection:
        connection.request(method, PREFIX + path, body if isinstance(body, bytes) else json.dumps(body), headers)
        response = connection.getresponse()
        return Reply(response.status, dict(response.headers), response.read())


def fetch(api: RuntimeApi) -> Reply:
    return request(api, "GET", "/invocation/next")


def test_an_invocation_reaches_the_runtime_with_its_headers(api: RuntimeApi, invoke: Invoke) -> None:
    began = time.time()
    future = invoke({"greeting": "grüezi"}, 7)

    response = fetch(api)

    assert response.status == 200
    assert json.loads(response.body) == {"greeting": "grüezi"}
    assert response.headers["Lambda-Runtime-Invoked-Function-Arn"] == ARN
    assert response.headers["Lambda-Runtime-Trace-Id"].startswith("Root=1-")
    deadline = int(response.headers["Lambda-Runtime-Deadline-Ms"]) / 1000
    assert began + 6.9 <= deadline <= time.time() + 7
    assert not future.done()


def test_the_runtimes_response_is_returned_as_it_was_posted(api: RuntimeApi, invoke: Invoke) -> None:
    future = invoke({})
    request_id = fetch(api).headers["Lambda-Runtime-Aws-Request-Id"]

    response = request(api, "POST", f"/invocation/{request_id}/response", b"not json")

    assert response.status == 202
    assert future.result(PATIENCE) == Answered(b"not json")


def test_the_runtimes_error_is_returned_with_its_traceback(api: RuntimeApi, invoke: Invoke) -> None:
    future = invoke({})
    request_id = fetch(api).headers["Lambda-Runtime-Aws-Request-Id"]
    error = {"errorType": "KeyError", "errorMessage": "'x'", "stackTrace": ["line 1", "line 2"]}

    response = request(api, "POST", f"/invocation/{request_id}/error", error)

    assert response.status == 202
    assert future.result(PATIENCE) == Errored("KeyError", "'x'", ("line 1", "line 2"))


@pytest.mark.parametrize("body", [b"", b"nonsense", b"[]", b"null"])
def test_an_error_without_readable_details_is_named_by_its_header(api: RuntimeApi, invoke: Invoke, body: bytes) -> None:
    future = invoke({})
    request_id = fetch(api).headers["Lambda-Runtime-Aws-Request-Id"]
    header = {"Lambda-Runtime-Function-Error-Type": "Runtime.Odd"}

    request(api, "POST", f"/invocation/{request_id}/error", body, **header)

    assert future.result(PATIENCE) == Errored("Runtime.Odd", "")


def test_the_next_request_waits_for_an_invocation(api: RuntimeApi, invoke: Invoke) -> None:
    with ThreadPoolExecutor(1) as runtime:
        waiting = runtime.submit(fetch, api)
        assert api.wait_until_ready(PATIENCE) is None
        assert not waiting.done()

        invoke({"number": 1})

        assert json.loads(waiting.result(PATIENCE).body) == {"number": 1}


def test_an_answer_to_another_invocation_is_refused(api: RuntimeApi, invoke: Invoke) -> None:
    future = invoke({})
    fetch(api)

    response = request(api, "POST", "/invocation/some-other-id/response", {})

    assert response.status == 400
    assert not future.done()


def test_an_answer_after_the_timeout_is_refused(api: RuntimeApi, invoke: Invoke) -> None:
    future = invoke({}, 0.05)
    request_id = fetch(api).headers["Lambda-Runtime-Aws-Request-Id"]
    assert future.result(PATIENCE) == TimedOut(0.05)

    response = request(api, "POST", f"/invocation/{request_id}/response", {})

    assert response.status == 400


def test_the_end_of_the_process_ends_the_invocation(api: RuntimeApi, invoke: Invoke) -> None:
    future = invoke({})
    fetch(api)

    api.process_ended("killed by SIGKILL")

    assert future.result(PATIENCE) == Crashed("killed by SIGKILL")


def test_an_answer_that_came_before_the_end_of_the_process_counts(api: RuntimeApi, invoke: Invoke) -> None:
    future = invoke({})
    request_id = fetch(api).headers["Lambda-Runtime-Aws-Request-Id"]

    request(api, "POST", f"/invocation/{request_id}/response", b"{}")
    api.process_ended("exit status 0")

    assert future.result(PATIENCE) == Answered(b"{}")


def test_a_runtime_that_never_fetches_the_invocation_times_out_once(api: RuntimeApi) -> None:
    began = time.monotonic()

    assert api.invoke({}, timeout_seconds=0.4) == TimedOut(0.4)

    assert time.monotonic() - began < 0.75  # not once for the fetching and again for the answer


def test_a_failed_start_is_told_in_the_runtimes_words(api: RuntimeApi) -> None:
    error = {"errorType": "Runtime.ImportModuleError", "errorMessage": "No module named 'shop'"}

    response = request(api, "POST", "/init/error", error)
    api.process_ended("exit status 1")

    assert response.status == 202
    assert api.wait_until_ready(PATIENCE) == Errored("Runtime.ImportModuleError", "No module named 'shop'")


def test_a_start_that_dies_without_a_word_is_a_crash(api: RuntimeApi) -> None:
    api.process_ended("killed by SIGSEGV")

    assert api.wait_until_ready(PATIENCE) == Crashed("killed by SIGSEGV")


def test_a_start_that_hangs_times_out(api: RuntimeApi) -> None:
    assert api.wait_until_ready(0.05) == TimedOut(0.05)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/restore/next"), ("POST", "/invocation/next"), ("POST", "/invocation/a/b/response")],
)
def test_unknown_paths_are_not_found(api: RuntimeApi, method: str, path: str) -> None:
    assert request(api, method, path).status == 404


def test_a_large_answer_is_not_kept_waiting_for_the_go_ahead(api: RuntimeApi) -> None:
    host, port = api.address.split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
        connection.sendall(
            f"POST {PREFIX}/init/error HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n".encode()
        )

        assert connection.recv(65536).startswith(b"HTTP/1.1 100")


def test_close_lets_a_waiting_runtime_go(api: RuntimeApi) -> None:
    with ThreadPoolExecutor(1) as runtime:
        waiting = runtime.submit(fetch, api)
        assert api.wait_until_ready(PATIENCE) is None

        api.close()

        with pytest.raises(http.client.RemoteDisconnected):
            waiting.result(PATIENCE)
