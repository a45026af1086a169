"""The pipeline, the claim, the handler: what everything rests on."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

MUTATIONS: Final = (
    Mutation(
        "SUCCESS is written after the transaction",
        "executor.py",
        "        get_store().record(run, run.success)  # commits or rolls back with the work\n"
        '        points.reached("finish:before_commit")\n',
        '        points.reached("finish:before_commit")\n    get_store().record(run, run.success)\n',
    ),
    Mutation(
        "the lock is released before COMMIT",
        "executor.py",
        "        with held_lock(run), limits:\n            work(run, limits)\n",
        "        with limits, transaction.atomic(using=run.database):\n"
        "            with held_lock(run):\n                work(run, limits)\n",
    ),
    Mutation(
        "an alarm may strike while SUCCESS is written",
        "executor.py",
        "        run.success = Succeeded(result)\n        get_store().record(run, run.success)",
        "            run.success = Succeeded(result)\n            get_store().record(run, run.success)",
    ),
    Mutation(
        "an error after COMMIT is taken for a failure",
        "executor.py",
        "        if not run.committed:\n",
        "        if True:\n",
    ),
    Mutation(
        "a lost connection is the task's failure",
        "executor.py",
        "    elif connection_lost(run.database, error, run.session):\n",
        "    elif False:\n",
    ),
    Mutation(
        "a retry is recorded before it is sent",
        "executor.py",
        "            if refusal := send_retry(run, retry):\n                outcome, kept = Failed(refusal), None\n",
        "            get_store().record(run, outcome)\n            send_retry(run, retry)\n            return outcome\n",
    ),
    Mutation(
        "no fence",
        "stores/orm.py",
        "filter(pk=message_id, claim=claim, status=TaskStatus.RUNNING)\n",
        "filter(pk=message_id)\n",
    ),
    Mutation(
        "a running invocation is acknowledged",
        "executor.py",
        'raise Redeliver(f"{run.task_name} is running in another worker", visible_in=seconds)',
        'return Skipped("running")',
    ),
    Mutation(
        "a finished invocation is run again",
        "stores/orm.py",
        "            return Finished(met.status)\n",
        "            return Claimed()\n",
    ),
    Mutation(
        "a claim has no lease",
        "stores/orm.py",
        '"lease": timedelta(seconds=run.lease),\n',
        '"lease": timedelta(),\n',
    ),
    Mutation(
        "crashes are not counted",
        "executor.py",
        "    if run.takeovers > app_settings.max_takeovers:\n",
        "    if False:\n",
    ),
    Mutation(
        "on_crash is not asked",
        "executor.py",
        '    if run.task.on_crash == "fail":\n',
        "    if False:\n",
    ),
    Mutation(
        "a retry that cannot be sent is forgotten",
        "executor.py",
        'raise Redeliver(f"the retry of {run.task_name} could not be sent") from error',
        "return",
    ),
    Mutation(
        "a retry has an id of its own at each send",
        "jobs.py",
        "message_id=identity.retry_id(self.root_id, message.n_retries)",
        "message_id=identity.new_message_id()",
    ),
    Mutation(
        "a message may import anything",
        "registry.py",
        "    if not _may_import(module_name):\n",
        "    if False:\n",
    ),
    Mutation(
        "time limits are not clamped",
        "executor.py",
        "    if left >= hard:\n",
        "    if True:\n",
    ),
    Mutation(
        "retry_on=(Exception,) takes time limits",
        "default_plugin.py",
        " and not _is_unnamed_limit(error, task.retry_on):\n",
        ":\n",
    ),
    Mutation(
        "a result is turned into text",
        "stores/orm.py",
        "result=json_result(result)",
        "result=str(result)",
    ),
    Mutation(
        "a swallowed hard limit is forgotten",
        "timeouts.py",
        "        if limits.hard_reached:\n",
        "        if isinstance(error, _HardInterrupt):\n",
        "tests/test_timeouts.py",
    ),
    Mutation(
        "except Exception catches the hard limit",
        "timeouts.py",
        "class _HardInterrupt(BaseException):",
        "class _HardInterrupt(Exception):",
        "tests/test_timeouts.py",
    ),
    Mutation(
        "a timer stays armed",
        "timeouts.py",
        "        signal.setitimer(signal.ITIMER_REAL, 0)\n        global",
        "        global",
        "tests/test_timeouts.py",
    ),
    Mutation(
        "an alarm may strike outside of the task",
        "timeouts.py",
        "        if not self._armed:\n",
        "        if False:\n",
        "tests/test_timeouts.py",
    ),
    Mutation(
        "a task that ignores its limits lives on",
        "executor.py",
        "return TimeLimits(run.soft_timeout, run.hard_timeout, on_overrun=lambda: end_process(run))",
        "return TimeLimits(run.soft_timeout, run.hard_timeout)",
        "tests/test_process_end.py",
    ),
    Mutation(
        "a limit leaves the coroutine running",
        "timeouts.py",
        "        if self._deliver is None or _works_for_coroutine(frame):\n",
        "        if True:\n",
        "tests/test_async_tasks.py",
    ),
    Mutation(
        "coroutines have a connection of their own",
        "coroutines.py",
        "    return async_to_sync(_under_limits)(limits, function(**arguments))",
        "    return asyncio.run(_under_limits(limits, function(**arguments)))",
        "tests/test_async_tasks.py",
    ),
    Mutation(
        "tasks are started without time",
        "handler.py",
        "        return self._deadline - time.monotonic() >=",
        "        return True or self._deadline - time.monotonic() >=",
        "tests/test_handler.py",
    ),
    Mutation(
        "messages share a context",
        "handler.py",
        "copy_context().run(self._run_one, delivery)",
        "self._run_one(delivery)",
        "tests/test_handler.py",
    ),
    Mutation(
        "a record without an id is passed over",
        "deliveries.py",
        "map(Delivery.of, records):",
        'map(Delivery.of, [record for record in records if isinstance(record, dict) and record.get("messageId")]):',
        "tests/test_handler.py",
    ),
    Mutation(
        "after the database went away the batch goes on",
        "handler.py",
        "                for waiting in self._waiting[index:]:\n",
        "                for waiting in [delivery]:\n",
        "tests/test_handler.py",
    ),
    Mutation(
        "a retry goes to the queue of the decorator",
        "jobs.py",
        "            queue=self.queue,\n",
        "            queue=self.task.queue,\n",
        "tests/test_handler.py",
    ),
    Mutation(
        "the delay of a plugin's retry is not checked",
        "outcomes.py",
        "        if isinstance(delay, bool) or not isinstance(delay, int) or delay < 0:\n",
        "        if False:\n",
        "tests/test_handler.py",
    ),
    Mutation(
        "what a producer's plugins sent is dropped",
        "handler.py",
        "                attributes=delivery.attributes,\n",
        "",
        "tests/test_handler.py",
    ),
    Mutation(
        "misconfiguration is met after the claim",
        "executor.py",
        "    refuse_misconfiguration(task)\n",
        "",
        "tests/test_documented_examples.py",
    ),
    Mutation(
        "eager tasks run inside of each other",
        "backends/eager.py",
        "        is_first = waiting is None\n",
        "        is_first = True\n",
        "tests/test_eager.py",
    ),
)
