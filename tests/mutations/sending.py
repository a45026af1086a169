"""How messages leave: side by side, in order, and with nothing left behind."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

SIDE_BY_SIDE: Final = "tests/test_side_by_side.py"
SQS: Final = "tests/test_sqs.py"

MUTATIONS: Final = (
    Mutation(
        "sending goes on after an alarm",
        "backends/side_by_side.py",
        "        self._waiting.clear()\n",
        "",
        SIDE_BY_SIDE,
    ),
    Mutation(
        "sending is not waited for after an alarm",
        "backends/side_by_side.py",
        "            while not (result.cancel() or result.done()):\n",
        "            while False:\n",
        SIDE_BY_SIDE,
    ),
    Mutation(
        "sending leaves its threads when an alarm strikes twice",
        "backends/side_by_side.py",
        "                except BaseException as error:\n                    # A limit",
        "                except ZeroDivisionError as error:\n                    # A limit",
        SIDE_BY_SIDE,
    ),
    Mutation(
        "sending swallows the alarm that strikes on leaving",
        "backends/side_by_side.py",
        "        if interruption is not None and error is None:\n",
        "        if interruption is None and error is None and self._wanted < 0:\n",
        SIDE_BY_SIDE,
    ),
    Mutation(
        "sending fails where no thread can be started",
        "backends/side_by_side.py",
        "            except RuntimeError:\n",
        "            except ZeroDivisionError:\n",
        SIDE_BY_SIDE,
    ),
    Mutation(
        "sending loses the context",
        "backends/side_by_side.py",
        "target=copy_context().run, args=(self._do_all,)",
        "target=self._do_all",
        SIDE_BY_SIDE,
    ),
    Mutation(
        "sending tries a dead server again and again",
        "backends/sqs.py",
        "                server.given_up = True\n",
        "                pass\n",
        SQS,
    ),
    Mutation(
        "sending gives a server up that answers others",
        "backends/sqs.py",
        "if nobody_there and server.answers == answered_before:",
        "if nobody_there:",
        SQS,
    ),
    Mutation(
        "sending says nothing of what was not tried",
        "backends/sqs.py",
        "        if not_tried:\n",
        "        if not_tried and not errors:\n",
        SQS,
    ),
    Mutation(
        "sending uses fewer connections than threads",
        "backends/sqs.py",
        "max(_CONNECTIONS, max_threads)",
        "_CONNECTIONS",
        SQS,
    ),
    Mutation(
        "a number that JSON has not is sent",
        "signatures.py",
        "pydantic_core.from_json(text, allow_inf_nan=False))",
        "pydantic_core.from_json(text))",
        "tests/test_arguments.py",
    ),
)
