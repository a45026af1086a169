"""Mutations of the plugins for OpenTelemetry and Sentry, and of the hooks that they rest on."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

HOOKS: Final = "tests/execution/test_hooks.py"
OPENTELEMETRY: Final = "tests/contrib/test_opentelemetry.py"
SENTRY: Final = "tests/contrib/test_sentry.py"

MUTATIONS: Final = (
    Mutation(
        "a run whose message stays on the queue has no end for plugins",
        "execution/pipeline.py",
        "            notify(hooks().lambda_task_returned, run=attempt.run, error=redeliver)\n",
        "",
        HOOKS + "::TestLambdaTaskReturned",
    ),
    Mutation(
        "plugins do not know when Lambda ends the invocation",
        "handler.py",
        "event=event, response=batch.response(), deadline=deadline)",
        "event=event, response=batch.response(), deadline=None)",
        HOOKS + "::TestLambdaTaskBatchFinished",
    ),
    Mutation(
        "a flush uses up the time for the response",
        "contrib/flushing.py",
        "    return min(max(deadline - time.monotonic() - RESERVE, 0.0), MOST_SECONDS)",
        "    return MOST_SECONDS",
        OPENTELEMETRY + "::TestFlush",
    ),
    Mutation(
        "a batch waits for OpenTelemetry's server",
        "contrib/opentelemetry.py",
        "    _flusher.join(seconds)",
        "    _flusher.join()",
        OPENTELEMETRY + "::TestFlush",
    ),
    Mutation(
        "a message is processed by two spans",
        "contrib/opentelemetry.py",
        "    _leave_processing_to_us(trace.get_current_span())\n",
        "",
        OPENTELEMETRY + "::TestInstrumentations",
    ),
    Mutation(
        "a call replaces the trace that it has",
        "contrib/opentelemetry.py",
        "    if TRACEPARENT in job.attributes:\n        return\n",
        "",
        OPENTELEMETRY + "::TestSpans",
    ),
    Mutation(
        "retries and ignored errors are errors of OpenTelemetry",
        "contrib/opentelemetry.py",
        "    name, failure = _name_of(outcome), error_of(outcome)",
        '    name, failure = _name_of(outcome), getattr(outcome, "error", None)',
        OPENTELEMETRY + "::TestSpans",
    ),
    Mutation(
        "spans show sensitive arguments",
        "contrib/opentelemetry.py",
        'storable(run.scrubbed(message or ""))}',
        'storable(message or "")}',
        OPENTELEMETRY + "::TestSpans",
    ),
    Mutation(
        "a run whose message stays on the queue has no span",
        "contrib/opentelemetry.py",
        '        _end(current, "returned")\n',
        "",
        OPENTELEMETRY + "::TestSpans",
    ),
    Mutation(
        "a follower has a trace of its own",
        "contrib/opentelemetry.py",
        "detach=not run.is_followed or isinstance(outcome, Retry))",
        "detach=True)",
        OPENTELEMETRY + "::TestSpans",
    ),
    Mutation(
        "Sentry reports a failure twice",
        "contrib/sentry.py",
        '    is_line = record is not None and record.name == "lambda_tasks.executor"',
        "    is_line = False",
        SENTRY + "::TestErrors",
    ),
    Mutation(
        "Sentry takes the report of a failure for a repetition of its log line",
        "contrib/sentry.py",
        "    sentry_scope.global_event_processors.insert(0, _drop_logged_failure)",
        "    sentry_scope.global_event_processors.append(_drop_logged_failure)",
        SENTRY + "::TestErrors",
    ),
    Mutation(
        "an error of OpenTelemetry reaches the caller",
        "contrib/opentelemetry.py",
        "    except Exception:  # a broken SDK must not keep a task from being sent",
        "    except ZeroDivisionError:",
        OPENTELEMETRY + "::TestSpans",
    ),
    Mutation(
        "Sentry reports retries and ignored errors",
        "contrib/sentry.py",
        "    error = error_of(outcome)\n",
        '    error = getattr(outcome, "error", None)\n',
        SENTRY + "::TestErrors",
    ),
    Mutation(
        "Sentry receives the local variables of sensitive tasks",
        "contrib/sentry.py",
        '            frame.pop("vars", None)',
        "            pass",
        SENTRY + "::TestErrors",
    ),
    Mutation(
        "Sentry receives sensitive arguments",
        "contrib/sentry.py",
        "        return run.scrubbed(value)",
        "        return value",
        SENTRY + "::TestErrors",
    ),
    Mutation(
        "the scope of a run reaches what comes after it",
        "contrib/sentry.py",
        "    current.scopes.close()",
        "    pass",
        SENTRY + "::TestTraces",
    ),
    Mutation(
        "runs of operators check in to Sentry",
        "contrib/sentry.py",
        "        if ids.tick_id(run.task.name, schedule.label, moment) == run.root_id:",
        "        if True:",
        SENTRY + "::TestMonitors",
    ),
    Mutation(
        "each attempt of a periodic task is a run for Sentry",
        "contrib/sentry.py",
        '    if run.scheduled_for is None or (status == "in_progress" and run.n_retries):',
        "    if run.scheduled_for is None:",
        SENTRY + "::TestMonitors",
    ),
    Mutation(
        "Sentry is flushed without time for it",
        "contrib/sentry.py",
        "    if client.is_active() and seconds > 0:",
        "    if client.is_active():",
        SENTRY + "::TestFlush",
    ),
)
