"""Check the functions of a queue, and their event source mappings, for problems that would lose or repeat messages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from django.utils.module_loading import import_string

from lambda_tasks.operations.doctor.findings import RESERVE, Doctor, Queue, lease_sentence
from lambda_tasks.settings import MAX_FUNCTION_TIMEOUT, MAX_INSTANCES_TIMEOUT, MAX_TIMEOUT, app_settings
from lambda_tasks.wire.visibility import VISIBILITY_FACTOR, advised_visibility

#: The handler of the library.
DEFAULT_HANDLER: Final = "lambda_tasks.handler.handler"
#: How many invocations a provisioned poller makes at once, and the limits of ProvisionedPollerConfig.MaximumPollers;
#: the upper one is its default.
INVOCATIONS_PER_POLLER: Final = 10
LEAST_POLLERS: Final = 2
MAX_POLLERS: Final = 200
_REGION_IN_ARN: Final = re.compile(r"arn:[\w-]+:\w+:([\w-]+):")


def look_at_mappings(doctor: Doctor, queue: Queue, arn: str, visibility: int) -> None:
    region = _REGION_IN_ARN.match(arn)
    client = doctor.connect("lambda", region[1] if region else None, queue.server)
    mappings = doctor.ask(
        f"event source mapping of {queue}",
        "lambda:ListEventSourceMappings",
        lambda: [
            mapping
            for page in client.get_paginator("list_event_source_mappings").paginate(EventSourceArn=arn)
            for mapping in page["EventSourceMappings"]
        ],
    )
    if mappings is None:
        if doctor.function:
            _look_at_function(doctor, client, queue, doctor.function, visibility, mapping={})
        return
    if doctor.function:
        mappings = [mapping for mapping in mappings if _is_of(mapping["FunctionArn"], doctor.function)]
    if all(mapping.get("State") == "Disabled" for mapping in mappings):
        whose = f"function {doctor.function!r}" if doctor.function else "a function of this account"
        what = "its event source mapping is disabled" if mappings else f"it has no event source mapping to {whose}"
        doctor.find(
            "D201",
            queue,
            f"{what}. No function reads its messages, and they are deleted when their retention period ends.",
            "Create or enable the event source mapping, or correct --function.",
        )
    for mapping in mappings:
        _check_mapping(doctor, queue, mapping)
        _look_at_function(doctor, client, queue, mapping["FunctionArn"], visibility, mapping)


def _check_mapping(doctor: Doctor, queue: Queue, mapping: Mapping[str, Any]) -> None:
    if "ReportBatchItemFailures" not in (mapping.get("FunctionResponseTypes") or ()):
        doctor.find(
            "D202",
            _mapping_of(queue, mapping),
            "FunctionResponseTypes lacks ReportBatchItemFailures, so Lambda ignores the handler's response and deletes "
            "the whole batch. A message is lost without an error if its task is unknown, if too little time was left "
            "to run it, if it runs in another worker that then dies, or if its database was unavailable.",
            "Set FunctionResponseTypes to ReportBatchItemFailures.",
        )
    # Lambda does not show a filter that is encrypted with a key of the account, but says that it cannot read it.
    if (mapping.get("FilterCriteria") or {}).get("Filters") or mapping.get("FilterCriteriaError"):
        doctor.find(
            "D209",
            _mapping_of(queue, mapping),
            "it has FilterCriteria. Lambda deletes each message that does not match them, without a trace: its task "
            "does not run.",
            "Remove FilterCriteria. To have another function run some of the tasks, give them a queue of their own.",
        )


def _look_at_function(
    doctor: Doctor, client: Any, queue: Queue, name: str, visibility: int, mapping: Mapping[str, Any]
) -> None:
    """Check the function for this queue. Facts that do not depend on the queue are requested and reported once."""
    function = f"function {_short(name)!r}"
    configuration, is_first = doctor.ask_once(
        function, "lambda:GetFunctionConfiguration", lambda: _configuration(client, name)
    )
    if configuration == {}:
        doctor.find(
            "D208",
            function,
            f"it does not exist, so no worker reads the messages of {queue}.",
            "Create the function, or correct --function or the event source mapping.",
        )
        return
    if configuration is not None:
        if is_first:
            _check_handler(doctor, function, configuration)
            _check_longest_timeout(doctor, function, int(configuration["Timeout"]))
        _check_timeouts(doctor, queue, f"{function} for {queue}", int(configuration["Timeout"]), visibility, mapping)
    concurrency, _ = doctor.ask_once(
        function,
        "lambda:GetFunctionConcurrency",
        lambda: client.get_function_concurrency(FunctionName=_unqualified(name)),
    )
    if concurrency is not None and mapping:
        _check_concurrency(doctor, queue, concurrency.get("ReservedConcurrentExecutions"), mapping)
    recursion, is_first = doctor.ask_once(
        function, "lambda:GetFunctionRecursionConfig", lambda: _recursion(client, _unqualified(name))
    )
    if is_first and recursion is not None and recursion.get("RecursiveLoop") != "Allow":
        doctor.find(
            "D206",
            function,
            "RecursiveLoop is not Allow. Lambda treats retries, and tasks that enqueue tasks, as a recursive loop, and "
            "stops them after about 16 rounds. Their messages end in the dead letter queue.",
            f"Run: aws lambda put-function-recursion-config --function-name {_short(name)} --recursive-loop Allow",
        )


def _configuration(client: Any, name: str) -> Any:
    """Return the configuration of a function; empty if the function does not exist."""
    from botocore.exceptions import ClientError

    try:
        return client.get_function_configuration(FunctionName=name)
    except ClientError as error:
        if error.response["Error"]["Code"] != "ResourceNotFoundException":
            raise
        return {}


def _check_handler(doctor: Doctor, function: str, configuration: Mapping[str, Any]) -> None:
    """Check that the function calls the library's handler, or a function of the project, which may call it."""
    image = (configuration.get("ImageConfigResponse") or {}).get("ImageConfig") or {}
    handler = configuration.get("Handler") or next(iter(image.get("Command") or ()), None)
    if handler is None or handler == DEFAULT_HANDLER:
        return  # the image may name it in its own CMD
    if problem := _problem_of_handler(handler):
        doctor.find(
            "D207",
            function,
            f"its handler is {handler!r}, which {problem}. If it is not a function that calls {DEFAULT_HANDLER}, no "
            "task runs.",
            f"Set the function's handler to {DEFAULT_HANDLER}. If the handler exists only in the function's package, "
            "ignore this warning.",
        )


def _problem_of_handler(handler: str) -> str | None:
    try:
        function = import_string(handler.replace("/", "."))
    except Exception as error:  # importing a module may raise anything
        return f"cannot be imported here ({type(error).__name__})"
    return None if callable(function) else f"is not a function, but of type {type(function).__name__}"


def _check_longest_timeout(doctor: Doctor, function: str, timeout: int) -> None:
    longest = app_settings.max_timeout
    if timeout > longest:
        doctor.find(
            "D210",
            function,
            f"its timeout is {timeout} s, but LAMBDA_TASKS_MAX_TIMEOUT is {longest} s. No task can have a limit that "
            "uses the rest, and a message that comes back after the visibility timeout of such a function may find "
            "that its record already counts as lost.",
            f"Set LAMBDA_TASKS_MAX_TIMEOUT = {timeout}, or lower the function's timeout to {longest} s.",
        )


def _and_setting(timeout: int) -> str:
    """Return the end of a remedy: a raised setting that is longer than the function promises too much."""
    longest = app_settings.max_timeout
    if longest <= max(timeout, MAX_TIMEOUT):
        return ""
    return f" and LAMBDA_TASKS_MAX_TIMEOUT, which is {longest} s"


def _check_timeouts(
    doctor: Doctor, queue: Queue, function: str, timeout: int, visibility: int, mapping: Mapping[str, Any]
) -> None:
    needed = queue.hard_timeout + RESERVE
    if timeout < needed:
        doctor.find(
            "D203",
            function,
            f"its timeout is {timeout} s, but the longest task needs {needed:g} s (its hard timeout of "
            f"{queue.hard_timeout} s, and {RESERVE:g} s to end the task and to respond). Its time limits are shortened "
            "to the remaining time of the invocation, and each message for which too little time is left uses up a "
            "receive.",
            f"Raise the function's timeout to {needed:g} s or more (Lambda allows {MAX_FUNCTION_TIMEOUT} s, and "
            f"{MAX_INSTANCES_TIMEOUT} s on Managed Instances), or lower hard_timeout{_and_setting(timeout)}.",
        )
    window = int(mapping.get("MaximumBatchingWindowInSeconds") or 0)
    advised = advised_visibility(timeout, window)
    # A task may start as long as its hard timeout fits into the invocation, and its lease ends after that.
    latest_lease = timeout + window + queue.lease - needed
    if visibility < advised:
        lease = f" {lease_sentence(queue.lease)}" if queue.lease <= visibility < latest_lease else ""
        doctor.find(
            "D109",
            queue,
            f"VisibilityTimeout is {visibility} s, less than {VISIBILITY_FACTOR} times the timeout of {function} "
            f"({timeout} s){f' plus its batching window ({window} s)' if window else ''}. While Lambda is "
            f"throttled, messages become visible again and use up receives.{lease}",
            f"Set VisibilityTimeout to {advised} s.",
        )


def _check_concurrency(doctor: Doctor, queue: Queue, reserved: int | None, mapping: Mapping[str, Any]) -> None:
    if reserved is None:
        return
    maximum = (mapping.get("ScalingConfig") or {}).get("MaximumConcurrency")
    pollers = mapping.get("ProvisionedPollerConfig")
    if reserved == 0:
        doctor.find(
            "D205",
            _mapping_of(queue, mapping),
            "the function's reserved concurrency is 0. It never runs, and each attempt uses up a receive.",
            "Remove the reserved concurrency. To stop the tasks for a while, disable the event source mapping instead.",
        )
    elif pollers:  # which exclude MaximumConcurrency
        _check_pollers(doctor, queue, reserved, int(pollers.get("MaximumPollers") or MAX_POLLERS), mapping)
    elif maximum is None or maximum > reserved:
        doctor.find(
            "D204",
            _mapping_of(queue, mapping),
            f"the function's reserved concurrency is {reserved}, but the mapping's MaximumConcurrency is "
            f"{'not set' if maximum is None else maximum}. Lambda fetches more messages than it may run, and each "
            "throttled message uses up a receive.",
            f"Set ScalingConfig.MaximumConcurrency to {max(reserved, 2)} or less. AWS accepts 2 or more.",
        )


def _check_pollers(doctor: Doctor, queue: Queue, reserved: int, pollers: int, mapping: Mapping[str, Any]) -> None:
    if pollers * INVOCATIONS_PER_POLLER > reserved:
        advised = reserved // INVOCATIONS_PER_POLLER
        doctor.find(
            "D204",
            _mapping_of(queue, mapping),
            f"the function's reserved concurrency is {reserved}, but the mapping's {pollers} provisioned pollers "
            f"invoke it up to {pollers * INVOCATIONS_PER_POLLER} times at once. Each throttled message uses up a "
            "receive.",
            f"Set ProvisionedPollerConfig.MaximumPollers to {advised} or less, or raise the reserved concurrency."
            if advised >= LEAST_POLLERS
            else "Remove ProvisionedPollerConfig and set ScalingConfig.MaximumConcurrency to "
            f"{max(reserved, 2)} or less, or raise the reserved concurrency.",
        )


def _recursion(client: Any, function: str) -> Any:
    from botocore.exceptions import UnknownClientMethodError

    if not hasattr(client, "get_function_recursion_config"):
        raise UnknownClientMethodError(method_name="get_function_recursion_config")
    return client.get_function_recursion_config(FunctionName=function)


def _unqualified(function: str) -> str:
    """Return the function's name or ARN without a version or an alias, which some operations reject."""
    parts = function.split(":")
    if parts[0] == "arn":
        return ":".join(parts[:7])
    return parts[0]


def _short(function: str) -> str:
    return _unqualified(function).rpartition(":")[2]


def _is_of(arn: str, function: str) -> bool:
    return _short(arn) == _short(function)


def _mapping_of(queue: Queue, mapping: Mapping[str, Any]) -> str:
    return f"event source mapping from {queue} to function {_short(mapping['FunctionArn'])!r}"
