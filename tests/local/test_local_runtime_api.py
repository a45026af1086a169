"""The Runtime API, used over HTTP as by a runtime client."""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lambda_tasks.local import peers
from lambda_tasks.local.runtime_api import (
    MAX_RESPONSE_SIZE,
    Answered,
    Crashed,
    Errored,
    InvocationResult,
    RuntimeApi,
    TimedOut,
)

ARN = "arn:aws:lambda:eu-west-1:000000000000:function:shop"
PREFIX = "/2018-06-01/runtime"
PATIENCE = 10  # seconds: only a failing test waits this long

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


def test_invocation_reaches_the_runtime_with_its_headers(api: RuntimeApi, invoke: Invoke) -> None:
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


def test_runtimes_response_is_returned_unchanged(api: RuntimeApi, invoke: Invoke) -> None:
    future = invoke({})
    request_id = fetch(api).headers["Lambda-Runtime-Aws-Request-Id"]

    response = request(api, "POST", f"/invocation/{request_id}/response", b"not json")

    assert response.status == 202
    assert future.result(PATIENCE) == Answered(b"not json")


def test_runtimes_error_is_returned_with_its_traceback(api: RuntimeApi, invoke: Invoke) -> None:
    future = invoke({})
    request_id = fetch(api).headers["Lambda-Runtime-Aws-Request-Id"]
    error = {"errorType": "KeyError", "errorMessage": "'x'", "stackTrace": ["line 1", "line 2"]}

    response = request(api, "POST", f"/invocation/{request_id}/error", error)

    assert response.status == 202
    assert future.result(PATIENCE) == Errored("KeyError", "'x'", ("line 1", "line 2"))


@pytest.mark.parametrize("body", [b"", b"nonsense", b"[]", b"null"])
def test_unreadable_error_is_named_by_its_header(api: RuntimeApi, invoke: Invoke, body: bytes) -> None:
    future = invoke({})
    request_id = fetch(api).headers["Lambda-Runtime-Aws-Request-Id"]
    header = {"Lambda-Runtime-Function-Error-Type": "Runtime.Odd"}

    request(api, "POST", f"/invocation/{request_id}/error", body, **header)

    assert future.result(PATIENCE) == Errored("Runtime.Odd", "")


def test_next_request_waits_for_an_invocation(api: RuntimeApi, invoke: Invoke) -> None:
    with ThreadPoolExecutor(1) as runtime:
        waiting = runtime.submit(fetch, api)
        assert api.wait_until_ready(PATIENCE) is None
        assert not waiting.done()

        invoke({"number": 1})

        assert json.loads(waiting.result(PATIENCE).body) == {"number": 1}


def test_response_to_another_invocation_is_refused(api: RuntimeApi, invoke: Invoke) -> None:
    future = invoke({})
    fetch(api)

    response = request(api, "POST", "/invocation/some-other-id/response", {})

    assert response.status == 400
    assert not future.done()


def test_response_after_the_timeout_is_refused(api: RuntimeApi, invoke: Invoke) -> None:
    future = invoke({}, 1.0)  # the event must be fetched before the timeout, even on a busy machine
    request_id = fetch(api).headers["Lambda-Runtime-Aws-Request-Id"]
    assert future.result(PATIENCE) == TimedOut(1.0)

    response = request(api, "POST", f"/invocation/{request_id}/response", {})

    assert response.status == 400


def test_end_of_the_process_ends_the_invocation(api: RuntimeApi, invoke: Invoke) -> None:
    future = invoke({})
    fetch(api)

    api.process_ended("killed by SIGKILL")

    assert future.result(PATIENCE) == Crashed("killed by SIGKILL")


def test_response_before_the_process_ended_counts(api: RuntimeApi, invoke: Invoke) -> None:
    future = invoke({})
    request_id = fetch(api).headers["Lambda-Runtime-Aws-Request-Id"]

    request(api, "POST", f"/invocation/{request_id}/response", b"{}")
    api.process_ended("exit status 0")

    assert future.result(PATIENCE) == Answered(b"{}")


def test_unfetched_invocation_times_out_once(api: RuntimeApi) -> None:
    began = time.monotonic()

    assert api.invoke({}, timeout_seconds=0.4) == TimedOut(0.4)

    assert time.monotonic() - began < 0.75  # not once for the fetch and again for the response


def test_failed_start_reports_the_runtimes_error(api: RuntimeApi) -> None:
    error = {"errorType": "Runtime.ImportModuleError", "errorMessage": "No module named 'shop'"}

    response = request(api, "POST", "/init/error", error)
    api.process_ended("exit status 1")

    assert response.status == 202
    assert api.wait_until_ready(PATIENCE) == Errored("Runtime.ImportModuleError", "No module named 'shop'")


def test_silent_death_at_start_is_a_crash(api: RuntimeApi) -> None:
    api.process_ended("killed by SIGSEGV")

    assert api.wait_until_ready(PATIENCE) == Crashed("killed by SIGSEGV")


def test_hanging_start_times_out(api: RuntimeApi) -> None:
    assert api.wait_until_ready(0.05) == TimedOut(0.05)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/restore/next"), ("POST", "/invocation/next"), ("POST", "/invocation/a/b/response")],
)
def test_unknown_paths_are_not_found(api: RuntimeApi, method: str, path: str) -> None:
    assert request(api, method, path).status == 404


def test_large_response_is_continued_immediately(api: RuntimeApi) -> None:
    """A client that expects `100 Continue` before the body receives it."""
    host, port = api.address.split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
        connection.sendall(
            f"POST {PREFIX}/init/error HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n".encode()
        )

        assert connection.recv(65536).startswith(b"HTTP/1.1 100")


def test_close_disconnects_a_waiting_runtime(api: RuntimeApi) -> None:
    with ThreadPoolExecutor(1) as runtime:
        waiting = runtime.submit(fetch, api)
        assert api.wait_until_ready(PATIENCE) is None

        api.close()

        with pytest.raises(http.client.RemoteDisconnected):
            waiting.result(PATIENCE)


# Strangers


def address(api: RuntimeApi) -> tuple[str, int]:
    host, port = api.address.split(":")
    return host, int(port)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "localhost"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Referer": "http://evil.example/page"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/invocation/next"), ("POST", "/invocation/1/response"), ("POST", "/init/error")]
)
def test_request_of_a_web_page_is_refused(
    api: RuntimeApi, invoke: Invoke, method: str, path: str, headers: dict[str, str]
) -> None:
    future = invoke({"secret": 1})
    response = request(api, method, path, {}, **headers)
    assert response.status == 403
    assert b"secret" not in response.body
    assert not future.done()


def test_request_without_a_host_is_refused(api: RuntimeApi) -> None:
    with socket.create_connection(address(api), PATIENCE) as connection:
        connection.sendall(b"GET /2018-06-01/runtime/invocation/next HTTP/1.0\r\n\r\n")
        assert b" 403 " in connection.recv(100)


@pytest.mark.parametrize("head", ["Content-Length: -1", "Content-Length: ten", "Transfer-Encoding: chunked"])
def test_body_without_a_length_is_refused(api: RuntimeApi, head: str) -> None:
    with socket.create_connection(address(api), PATIENCE) as connection:
        path = "/2018-06-01/runtime/init/error"
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: {api.address}\r\n{head}\r\n\r\n".encode())
        assert b" 411 " in connection.recv(100)


def test_response_over_the_limit_of_lambda_fails(api: RuntimeApi, invoke: Invoke) -> None:
    future = invoke({})
    request_id = fetch(api).headers["Lambda-Runtime-Aws-Request-Id"]
    with socket.create_connection(address(api), PATIENCE) as connection:
        path = f"/2018-06-01/runtime/invocation/{request_id}/response"
        length = MAX_RESPONSE_SIZE + 1
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: {api.address}\r\nContent-Length: {length}\r\n\r\n".encode())
        assert b" 413 " in connection.recv(100)
    result = future.result(PATIENCE)
    assert isinstance(result, Errored)
    assert result.error_type == "Function.ResponseSizeTooLarge"


def test_largest_response_is_accepted(api: RuntimeApi, invoke: Invoke) -> None:
    future = invoke({})
    request_id = fetch(api).headers["Lambda-Runtime-Aws-Request-Id"]
    body = b"x" * MAX_RESPONSE_SIZE
    assert request(api, "POST", f"/invocation/{request_id}/response", body).status == 202
    assert future.result(PATIENCE) == Answered(body)


class TestOtherProcesses:
    @pytest.fixture
    def guarded(self) -> Iterator[RuntimeApi]:
        with closing(RuntimeApi(function_arn=ARN, is_guarded=True)) as api:
            if not api._is_guarded:
                pytest.skip("this system does not tell which process has a socket")
            yield api
            api.process_ended("the test is over")

    def test_request_of_another_process_is_refused(self, guarded: RuntimeApi) -> None:
        guarded.admit(os.getppid())
        assert request(guarded, "POST", "/init/error", {}).status == 403

    def test_request_of_the_process_is_accepted(self, guarded: RuntimeApi) -> None:
        guarded.admit(os.getpid())
        assert request(guarded, "POST", "/init/error", {}).status == 202

    def test_request_waits_until_the_process_is_known(self, guarded: RuntimeApi) -> None:
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(request, guarded, "POST", "/init/error", {})
            guarded.admit(os.getpid())
            assert future.result(PATIENCE).status == 202

    def test_systems_without_the_table_are_not_guarded(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(peers, "_TABLE", tmp_path / "missing")
        with closing(RuntimeApi(function_arn=ARN, is_guarded=True)) as api:
            assert request(api, "POST", "/init/error", {}).status == 202
