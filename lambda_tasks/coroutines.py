"""How `async def` tasks run: on an event loop of their own, their database work in the calling thread.

`async_to_sync`, and not `asyncio.run`: the ORM calls of the coroutine come back to the thread that
waits for it, and so into the transaction that carries its SUCCESS.

That thread is where alarms strike, while the coroutine runs in another one. So a time limit is not
raised in the thread, which would leave the coroutine running behind everybody's back, but thrown into
the coroutine, where it can be caught and tidied up after.
"""

from __future__ import annotations

import asyncio
import sys
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Mapping
from typing import Any

from asgiref.sync import async_to_sync

from lambda_tasks.timeouts import TimeLimits


def run_coroutine(function: Callable[..., Coroutine[Any, Any, Any]], arguments: Mapping[str, Any]) -> Any:
    """Call the coroutine function and return its result, under the time limits that are in force."""
    limits = TimeLimits.current()
    if limits is None:
        return async_to_sync(function)(**arguments)
    return async_to_sync(_under_limits)(limits, function(**arguments))


async def _under_limits(limits: TimeLimits, coroutine: Coroutine[Any, Any, Any]) -> Any:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    interrupts: deque[BaseException] = deque()

    def interrupt(error: BaseException) -> None:
        """Called by the signal handler in the other thread."""
        interrupts.append(error)
        loop.call_soon_threadsafe(task.cancel)

    with limits.delivered_to(interrupt):
        return await _driven(coroutine, interrupts)


@types.coroutine
def _driven(coroutine: Coroutine[Any, Any, Any], interrupts: deque[BaseException]) -> Generator[Any, Any, Any]:
    """Drive `coroutine`; where a cancellation arrives that stands for an interrupt, throw that instead."""
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
                _take_back_cancellation()


def _take_back_cancellation() -> None:
    """Let asyncio's own timeouts and task groups inside the coroutine not count it as theirs."""
    if sys.version_info >= (3, 11) and (task := asyncio.current_task()) is not None:
        task.uncancel()
