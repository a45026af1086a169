"""Tasks that do not end by themselves, for the workers in the tests of time limits."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import threading
import time
from typing import Any

from django.db import connections, transaction

from lambda_tasks.decorators import lambda_task
from lambda_tasks.strategies import get_store
from lambda_tasks.timeouts import SoftTimeLimitExceeded, TimeoutContext
from tests.app.models import Effect

#: Seconds that are longer than any test waits.
FOR_EVER = 600


def sql(statement: str, *, on: str | None = None) -> None:
    with connections[on or get_store().database].cursor() as cursor:
        cursor.execute(statement)


@lambda_task
def note(*, name: str) -> None:
    Effect.objects.using(get_store().database).create(name=name)


@lambda_task(soft_timeout=1, hard_timeout=2)
def swallow_every_exception() -> None:
    while True:
        with contextlib.suppress(Exception):
            time.sleep(FOR_EVER)


@lambda_task(soft_timeout=1, hard_timeout=2)
def swallow_everything() -> None:
    while True:
        try:
            time.sleep(FOR_EVER)
        except:  # noqa: E722
            continue


@lambda_task(soft_timeout=1, hard_timeout=2)
def sleep_in_finalizers() -> None:
    class Finalized:
        def __del__(self) -> None:
            time.sleep(FOR_EVER)

    for _ in range(2):
        Finalized()
    time.sleep(FOR_EVER)


@lambda_task(soft_timeout=1, hard_timeout=2)
def hold_the_interpreter() -> None:
    sum(itertools.repeat(1))  # endless, in C, without checking for signals


@lambda_task(soft_timeout=1, hard_timeout=2)
def match_a_catastrophic_expression() -> None:
    re.match(r"(a+)+$", "a" * 64 + "b")


@lambda_task(soft_timeout=1, hard_timeout=2)
def nest_contexts(*, name: str) -> None:
    with contextlib.suppress(SoftTimeLimitExceeded), TimeoutContext(soft_timeout=0.1, hard_timeout=FOR_EVER):
        time.sleep(FOR_EVER)
    with TimeoutContext(soft_timeout=FOR_EVER, hard_timeout=2 * FOR_EVER):
        while True:
            with contextlib.suppress(Exception):
                time.sleep(FOR_EVER)


@lambda_task(soft_timeout=1, hard_timeout=2)
def take_longer_than_the_limits(*, name: str) -> None:
    done = threading.Event()
    threading.Timer(2.2, done.set).start()
    done.wait(FOR_EVER)
    note(name=name)


@lambda_task(soft_timeout=1, hard_timeout=2)
def wait_for_the_server(*, tag: str) -> None:
    sql(f"SELECT pg_sleep({FOR_EVER}) /* {tag} */")


@lambda_task(soft_timeout=1, hard_timeout=2)
def wait_for_another_server(*, tag: str, alias: str) -> None:
    sql(f"SELECT pg_sleep({FOR_EVER}) /* {tag} */", on=alias)


@lambda_task(soft_timeout=1, hard_timeout=20)
def wait_for_another_server_and_ignore(*, alias: str) -> str:
    with contextlib.suppress(SoftTimeLimitExceeded):
        sql(f"SELECT pg_sleep({FOR_EVER}) /* shrugged off elsewhere */", on=alias)
    return "as if nothing had happened"


@lambda_task
def ask_another_server(*, alias: str) -> None:
    sql("SELECT 1", on=alias)


@lambda_task(soft_timeout=1, hard_timeout=20)
def wait_for_the_server_and_clean_up(*, tag: str) -> str:
    try:
        with transaction.atomic(using=get_store().database):
            sql(f"SELECT pg_sleep({FOR_EVER}) /* {tag} */")
    except SoftTimeLimitExceeded:
        note(name=f"{tag} is tidied up")
    return "in time"


@lambda_task(soft_timeout=1, hard_timeout=20)
def wait_for_the_server_and_ignore() -> str:
    with contextlib.suppress(SoftTimeLimitExceeded):
        sql(f"SELECT pg_sleep({FOR_EVER}) /* shrugged off */")
    return "as if nothing had happened"


@lambda_task
def die_waiting_for_the_server(*, tag: str) -> None:
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGKILL)).start()
    sql(f"SELECT pg_sleep({FOR_EVER}) /* {tag} */")


@lambda_task(soft_timeout=1, hard_timeout=2)
def commit_slowly(*, name: str) -> None:
    """Commit slowly: a trigger of the tests makes COMMIT take the number of seconds in the name."""
    note(name=name)


@lambda_task
def steal_the_alarm() -> None:
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0)


@lambda_task(soft_timeout=1, hard_timeout=2)
def sleep() -> None:
    time.sleep(FOR_EVER)


@lambda_task
def fill_the_memory() -> None:
    """Allocate about 800 MiB in small pieces."""
    pile: list[Any] = []
    for number in range(25_000):
        pile.append([float(number)] * 100 + [float(i) for i in range(1000)])
