"""Mutations of sending messages in parallel, in order, and completely."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

SIDE_BY_SIDE: Final = "tests/sending/test_side_by_side.py"
SQS: Final = "tests/backends/test_sqs.py"

MUTATIONS: Final = (
    Mutation(
        "sending continues after an alarm",
        "sending/side_by_side.py",
        "        self._waiting.clear()\n",
        "",
        SIDE_BY_SIDE,
    ),
    Mutation(
        "an alarm does not wait for requests under way",
        "sending/side_by_side.py",
        "            while not (result.cancel() or result.done()):\n",
        "            while False:\n",
        SIDE_BY_SIDE,
    ),
    Mutation(
        "a second alarm leaves threads running",
        "sending/side_by_side.py",
        "                except BaseException as error:\n                    # A hard limit",
        "                except ZeroDivisionError as error:\n                    # A hard limit",
        SIDE_BY_SIDE,
    ),
    Mutation(
        "an alarm after the last result is swallowed",
        "sending/side_by_side.py",
        "        if interruption is not None and error is None:\n",
        "        if interruption is None and error is None and self._wanted < 0:\n",
        SIDE_BY_SIDE,
    ),
    Mutation(
        "sending fails if threads cannot start",
        "sending/side_by_side.py",
        "            except RuntimeError:\n",
        "            except ZeroDivisionError:\n",
        SIDE_BY_SIDE,
    ),
    Mutation(
        "threads do not inherit context variables",
        "sending/side_by_side.py",
        "target=copy_context().run, args=(self._do_all,)",
        "target=self._do_all",
        SIDE_BY_SIDE,
    ),
    Mutation(
        "messages to an emulator are sent to AWS",
        "wire/queue_urls.py",
        'return {**options, "endpoint_url": own} if is_default else options',
        "return options",
        "tests/wire/test_queue_urls.py",
    ),
    Mutation(
        "calls accept queues that cannot receive messages",
        "backends/sqs.py",
        "if problem := problem_of(url) or self._missing_region(url):",
        "if False:",
        "tests/wire/test_queue_urls.py",
    ),
    Mutation(
        "messages are postponed in a queue of another region",
        "wire/queue_urls.py",
        'exact = (url for url in candidates if region_in(url) == match["region"])',
        "exact = iter(candidates)",
        "tests/wire/test_queue_urls.py",
    ),
    Mutation(
        "sending retries an unavailable server for each batch",
        "backends/sqs.py",
        "                progress.given_up = True\n",
        "                pass\n",
        SQS,
    ),
    Mutation(
        "sending gives up a server that answers other requests",
        "backends/sqs.py",
        "if no_answer and progress.answers == answered_before:",
        "if no_answer:",
        SQS,
    ),
    Mutation(
        "messages that were not attempted are not reported",
        "backends/sqs.py",
        "            yield from (Unsent(job, not_tried) for job in answer.not_tried)\n",
        "",
        SQS,
    ),
    Mutation(
        "the connection pool is smaller than the number of threads",
        "backends/sqs.py",
        "max(_CONNECTIONS, max_threads)",
        "_CONNECTIONS",
        SQS,
    ),
    Mutation(
        "NaN and infinity are sent",
        "definition/converting.py",
        "pydantic_core.from_json(text, allow_inf_nan=False))",
        "pydantic_core.from_json(text))",
        "tests/definition/test_arguments.py",
    ),
)
