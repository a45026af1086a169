"""Run `async def` tasks on their own event loop, with their database work in the calling thread.

`async_to_sync` is used instead of `asyncio.run`, because it runs the coroutine's ORM calls in the thread that waits
for the coroutine, and so in the transaction that writes its SUCCESS.

Alarms interrupt that thread, while the coroutine runs in another one. Raising a time limit in the waiting thread would
leave the coroutine running unnoticed. So the limit is thrown into the coroutine, which can catch it and clean up.
"""

from __future__ import annotations

import asyncio
import sys
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Mapping
from typing import Any

from asgiref.sync import async_to_sync

from lambda_tasks.limits.alarms import TimeLimits


def run_coroutine(function: Callable[..., Coroutine[Any, Any, Any]], arguments: Mapping[str, Any]) -> Any:
    """Call the coroutine function under the current time limits, and return its result."""
    limits = TimeLimits.current()
    if limits is None:
        return async_to_sync(function)(**arguments)
    return async_to_sync(_under_limits)(limits, function(**arguments))


async def _under_limits(limits: TimeLimits, coroutine: Coroutine[Any, Any, Any]) -> Any:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    interrupts: deque[BaseException] = deque()

    def interrupt(error: BaseException) -> None:
        """Cancel the coroutine; the signal handler calls this from the other thread."""
        interrupts.append(error)
        loop.call_soon_threadsafe(task.cancel)

    with limits.delivered_to(interrupt):
        return await _driven(coroutine, interrupts)


@types.coroutine
def _driven(coroutine: Coroutine[Any, Any, Any], interrupts: deque[BaseException]) -> Generator[Any, Any, Any]:
    """Drive `coroutine`, and replace a cancellation that a time limit caused with the limit's exception."""
    advance: Callable[[Any], Any] = coroutine.send
    value: Any = None
    while True:
        try:
            awaited = advance(value)
        except StopIteration as stop:
            return stop.value
        try:
            advance, value = coroutine.send, (yield awaited)
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as error:
            advance, value = coroutine.throw, error
            if isinstance(error, asyncio.CancelledError) and interrupts:
                value = interrupts.popleft()
                _undo_cancellation()


def _undo_cancellation() -> None:
    """Undo the cancellation, so that asyncio's timeouts and task groups in the coroutine do not count it."""
    if sys.version_info >= (3, 11) and (task := asyncio.current_task()) is not None:
        task.uncancel()
