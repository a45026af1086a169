"""Mutations of the context, the fields and the text of log lines, signals, the health and the ping."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

CONTEXT: Final = "tests/contrib/test_context.py"
HEALTH: Final = "tests/contrib/test_health.py"
LINES: Final = "tests/project/test_log_lines.py"
PING: Final = "tests/execution/test_ping.py"
SIGNALS: Final = "tests/contrib/test_signals.py"

MUTATIONS: Final = (
    Mutation(
        "a retry has the context that the task leaves behind",
        "jobs.py",
        "            attributes=inherited(self.attributes),\n            task=self.task,\n",
        "            task=self.task,\n",
        CONTEXT + "::TestPropagation::test_retry_has_it",
    ),
    Mutation(
        "a follower has the context that the task leaves behind",
        "flows/ending.py",
        "            attributes=inherited(run.attributes),\n",
        "",
        CONTEXT + "::TestPropagation",
    ),
    Mutation(
        "the end of a group has the context that a member leaves behind",
        "execution/settling.py",
        "resume(run.root_id, run.flow, run.database, run.attributes)",
        "resume(run.root_id, run.flow, run.database)",
        CONTEXT + "::TestPropagation",
    ),
    Mutation(
        "what is owed loses its context in the database",
        "flows/due.py",
        'row["chain_id"], row.get("attributes", {}))',
        'row["chain_id"])',
        CONTEXT + "::TestPropagation",
    ),
    Mutation(
        "a replaced call keeps the context of the earlier one",
        "backends/outbox.py",
        "        attributes = {**kept, **inherited(job.attributes), **group}",
        "        attributes = {**kept, **group}",
        CONTEXT + "::TestPropagation",
    ),
    Mutation(
        "a call without values leaves no context for its followers",
        "contrib/context.py",
        "            job.attributes[CONTEXT_ATTRIBUTE] = self._current(job.task_name)",
        '            job.attributes.update({CONTEXT_ATTRIBUTE: text} if (text := self._current(job.task_name)) != "{}" else {})',
        CONTEXT + "::TestPropagation",
    ),
    Mutation(
        "a context of any size is sent",
        "contrib/context.py",
        "        if len(text) > MAX_BYTES:\n",
        "        if len(text) < 0:\n",
        CONTEXT + "::TestValues",
    ),
    Mutation(
        "a malformed context is set",
        "contrib/context.py",
        "    if not isinstance(values, dict) or not all(map(_is_plain, values.values())):",
        "    if not isinstance(values, dict):",
        CONTEXT + "::TestValues",
    ),
    Mutation(
        "a message names the folder of a translation",
        "contrib/context.py",
        "not isinstance(value, str) or not translation.check_for_language(value)",
        "not isinstance(value, str)",
        CONTEXT + "::TestDjango",
    ),
    Mutation(
        "other plugins are called before the context is set",
        "plugins.py",
        "                manager.register(_imported(CONTEXT_PLUGIN)(paths), name=CONTEXT_PLUGIN)\n",
        "                manager.register(_imported(CONTEXT_PLUGIN)(paths), name=CONTEXT_PLUGIN)\n"
        "                for plugin in reversed(app_settings.plugins):\n"
        "                    manager.unregister(plugin)\n"
        "                    _register(plugin)\n",
        CONTEXT + "::TestSetting",
    ),
    Mutation(
        "arguments of a line are not escaped",
        "recording/lines.py",
        "            record.args = tuple(map(_harmless, record.args))",
        "            pass",
        LINES + "::TestForgedLines",
    ),
    Mutation(
        "an error forges a line of the log",
        "recording/lines.py",
        "            record.exc_text = printed(error)",
        "            pass",
        LINES + "::TestForgedLines",
    ),
    Mutation(
        "an error of a sensitive task forges a line of the log",
        "jobs.py",
        "Lines(indented(run.traceback_text(error)))",
        "Lines(run.traceback_text(error))",
        LINES + "::TestForgedLines",
    ),
    Mutation(
        "lines have the location of the adapter",
        "logging.py",
        'kwargs.get("stacklevel", 1) + _OWN_FRAMES',
        'kwargs.get("stacklevel", 1)',
        LINES + "::TestLocation",
    ),
    Mutation(
        "lines of failed tasks have the location of a helper",
        "jobs.py",
        "        logger.log(level, message, *args, exc_info=error, extra=extra, stacklevel=2)",
        "        logger.log(level, message, *args, exc_info=error, extra=extra)",
        LINES + "::TestLocation",
    ),
    Mutation(
        "the fields replace those of the call",
        "logging.py",
        "            if field not in known:\n",
        "            if True:\n",
        LINES + "::TestFilter",
    ),
    Mutation(
        "lines of other loggers lack the fields on Lambda",
        "handler.py",
        "        add_fields_on_lambda()\n",
        "",
        LINES + "::TestFields",
    ),
    Mutation(
        "lines of the handler lack the id",
        "handler.py",
        "        log_context.set((delivery.message_id, partial(self._log_fields, delivery)))",
        "        pass",
        LINES + "::TestFields",
    ),
    Mutation(
        "lines of the handler lack the task",
        "handler.py",
        "            log_context.set((delivery.message_id, partial(self._log_fields, delivery, message)))\n",
        "",
        LINES + "::TestFields",
    ),
    Mutation(
        "loggers that a project has disabled are enabled",
        "apps.py",
        "    if configured or _were_disabled():\n",
        "    if True:\n",
        LINES + "::TestDisabledLoggers",
    ),
    Mutation(
        "loggers that LOGGING disables before the library is imported stay disabled",
        "apps.py",
        "    if configured or _were_disabled():\n",
        "    if _were_disabled():\n",
        LINES + "::TestDisabledLoggers",
    ),
    Mutation(
        "an exception in a receiver keeps others from being called",
        "contrib/signals.py",
        "            task_succeeded.send_robust(sender, run=run, result=result)",
        "            task_succeeded.send(sender, run=run, result=result)",
        SIGNALS + "::TestReceivers",
    ),
    Mutation(
        "a copy of a task is another sender",
        "contrib/signals.py",
        "    return registry.known_task(task_name) or task\n",
        "    return task or registry.known_task(task_name)\n",
        SIGNALS + "::TestSignals",
    ),
    Mutation(
        "the health shows errors to everyone",
        "contrib/health.py",
        "        if _may_see_details(request):\n",
        "        if True:\n",
        HEALTH + "::TestAnswer",
    ),
    Mutation(
        "an unhealthy process answers 200",
        "contrib/health.py",
        "status=200 if healthy else 503",
        "status=200",
        HEALTH + "::TestAnswer",
    ),
    Mutation(
        "the health waits for an unavailable database in each check",
        "contrib/health.py",
        '            if name == "database" and found[name] != OK:\n                break\n',
        "",
        HEALTH + "::TestAnswer",
    ),
    Mutation(
        "missing migrations are healthy",
        "contrib/health.py",
        "    if missing := known - applied:\n",
        "    if missing := applied - known:\n",
        HEALTH + "::TestChecks",
    ),
    Mutation(
        "a ping does not query the database",
        "operations/ping.py",
        "    on_sound_connection(database, partial(_query, database))",
        "    partial(_query, database)",
        PING,
    ),
    Mutation(
        "messages with the source of a warm-up are not run",
        "operations/ping.py",
        '    if not isinstance(event, Mapping) or "Records" in event:\n',
        "    if not isinstance(event, Mapping):\n",
        PING,
    ),
)
