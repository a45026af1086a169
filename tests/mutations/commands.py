"""Mutations of the command line, of dead letters, and of statistics."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

COMMANDS: Final = "tests/management/test_commands.py"
LETTERS: Final = "tests/management/test_dead_letters.py"
OUTPUT: Final = "tests/management/test_output.py"
RELOADING: Final = "tests/local/test_local_reloading.py"
STATISTICS: Final = "tests/operations/test_statistics.py"

MUTATIONS: Final = (
    Mutation(
        "retry runs the same records again and again",
        "management/retry.py",
        "records.exclude(Exists(again))",
        "records",
        COMMANDS + "::TestRetry",
    ),
    Mutation(
        "retry counts an unsent record as sent",
        "operations/rerunning.py",
        "_unsent(each, error) if each.new_id and each.new_id not in sent else each",
        "each",
        COMMANDS + "::TestRetry",
    ),
    Mutation(
        "one refused record stops the others",
        "operations/rerunning.py",
        "    except CannotRunAgain as error:\n        return Again(record, problem=str(error))\n",
        "    except CannotRunAgain:\n        raise\n",
        COMMANDS + "::TestRetry",
    ),
    Mutation(
        "a dry run sends",
        "management/retry.py",
        "for each in batch] if dry_run else run_all_again(batch)",
        "for each in batch] if False else run_all_again(batch)",
        COMMANDS + "::TestRetry",
    ),
    Mutation(
        "a dead letter is deleted although its queue has refused it",
        "operations/dead_letters.py",
        'sent += [part[int(each["Id"])] for each in answer.get("Successful", [])]',
        "sent += part",
        LETTERS + "::TestRedrive",
    ),
    Mutation(
        "a dead letter of another queue is moved",
        "operations/dead_letters.py",
        "    if name in urls or name in app_settings.queues:\n        return urls.get(name)\n",
        "",
        LETTERS + "::TestRedrive",
    ),
    Mutation(
        "the queue of a dead letter is guessed",
        "operations/dead_letters.py",
        "return next(iter(urls.values())) if len(urls) == 1 else None",
        "return next(iter(urls.values()))",
        LETTERS + "::TestRedrive",
    ),
    Mutation(
        "a dead letter of another program gets a new id",
        "operations/dead_letters.py",
        "    if MESSAGE_ID_ATTRIBUTE not in attributes and len(attributes) < _MAX_ATTRIBUTES and _is_invocation(message):",
        "    if False:",
        LETTERS + "::TestRedrive",
    ),
    Mutation(
        "dead letters that come back are moved for ever",
        "operations/dead_letters.py",
        "        seen.update(map(_id_of, batch))\n",
        "        if moved.number > 50:\n            raise RecursionError\n",
        LETTERS + "::TestRedrive",
    ),
    Mutation(
        "a missing permission to move messages is circumvented",
        "operations/dead_letters.py",
        "        if _is_unsupported(error.response):",
        "        if True:",
        LETTERS + "::TestRedrive",
    ),
    Mutation(
        "dead letters show sensitive arguments",
        "operations/dead_letters.py",
        "kwargs=None if task is None else masked(call.kwargs, task.sensitive)",
        "kwargs=call.kwargs",
        LETTERS + "::TestPeek",
    ),
    Mutation(
        "looking at dead letters hides them",
        "operations/dead_letters.py",
        '"VisibilityTimeout": 0}',
        '"VisibilityTimeout": 60}',
        LETTERS + "::TestPeek",
    ),
    Mutation(
        "dead letters are deleted without a confirmation",
        "management/dlq.py",
        "if not yes and not self._confirmed(",
        "if False and not self._confirmed(",
        LETTERS + "::TestPurge",
    ),
    Mutation(
        "text of tasks controls the terminal",
        "management/output.py",
        "    return printable(text, max_length=_MAX_CELL)",
        "    return text",
        OUTPUT,
    ),
    Mutation(
        "tracebacks control the terminal",
        "management/output.py",
        "(printable(line, max_length=1_000) for line in",
        "(line for line in",
        OUTPUT,
    ),
    Mutation(
        "a narrow terminal gets a table without some of its columns",
        "management/output.py",
        "if _needed_width(headings, cells) <= console.width:",
        "if True:",
        OUTPUT,
    ),
    Mutation(
        "a failure of AWS or the database ends a command with a traceback",
        "management/commands/lambda_tasks.py",
        "if (text := failure(error)) is None:",
        "if True:",
        COMMANDS,
    ),
    Mutation(
        "a mistake in the code has no traceback",
        "management/failures.py",
        "    return None\n\n\ndef",
        "    return str(error)\n\n\ndef",
        COMMANDS,
    ),
    Mutation(
        "warnings are mixed with JSON",
        "management/output.py",
        "            self._command.stderr.write(text)\n",
        "            self._command.stdout.write(text)\n",
        OUTPUT,
    ),
    Mutation(
        "statistics read all records",
        "operations/statistics.py",
        "        return replace(asked, since=boundary, complete=False)\n",
        "        pass\n",
        STATISTICS,
    ),
    Mutation(
        "counting statuses reads the rows of records",
        "operations/statistics.py",
        "self.records.filter(status__in=TaskStatus.values)",
        "self.records",
        STATISTICS + "::TestRecords::test_each_statistic_is_few_queries",
    ),
    Mutation(
        "clocks that differ make a wait negative",
        "operations/statistics.py",
        "return max(value, 0.0) if isinstance(value, float) else value",
        "return value",
        STATISTICS,
    ),
    Mutation(
        "changed code ends the worker in the middle of a batch",
        "local/reloading.py",
        "            self._on_change()\n        return True",
        "            self._on_change()\n        return False",
        RELOADING,
    ),
    Mutation(
        "broken code stops the worker",
        "local/reloading.py",
        "if problem := _problem_of(file_path):",
        "if problem := None:",
        RELOADING,
    ),
)
