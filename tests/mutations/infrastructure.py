"""Mutations of the templates of the infrastructure."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

TESTS: Final = "tests/operations/test_infrastructure.py"
DEPLOYED: Final = "tests/operations/test_infrastructure_deployed.py"
FOLDER: Final = "operations/infrastructure"

MUTATIONS: Final = (
    Mutation(
        "the template's visibility timeout leaves the batching window out",
        f"{FOLDER}/planning.py",
        "advised_visibility(timeout, window),",
        "advised_visibility(timeout, 0),",
        TESTS,
    ),
    Mutation(
        "the template accepts a function timeout that is too short",
        f"{FOLDER}/planning.py",
        "if chosen is not None and chosen < longest.invocation:",
        "if False:",
        TESTS,
    ),
    Mutation(
        "the template's function serves a task that no function can run",
        f"{FOLDER}/planning.py",
        "if longest.invocation > most:",
        "if False:",
        TESTS,
    ),
    Mutation(
        "the template's function has a timeout that the settings do not expect",
        f"{FOLDER}/planning.py",
        "if chosen is not None and chosen > most:",
        "if False:",
        TESTS,
    ),
    Mutation(
        "the template's function is longer than Lambda allows",
        f"{FOLDER}/planning.py",
        "min(app_settings.max_timeout, MAX_FUNCTION_TIMEOUT)",
        "app_settings.max_timeout",
        TESTS,
    ),
    Mutation(
        "the template's batches do not fit into an invocation",
        f"{FOLDER}/planning.py",
        "return max(1, min(BATCH_SIZE, 1 + int((timeout - self.invocation) / self.usual)))",
        "return BATCH_SIZE",
        TESTS,
    ),
    Mutation(
        "the template overlooks other names of a queue",
        f"{FOLDER}/planning.py",
        'hard_timeout = max(findings.Queue(alias, "").hard_timeout for alias in address.aliases)',
        'hard_timeout = findings.Queue(address.aliases[0], "").hard_timeout',
        TESTS,
    ),
    Mutation(
        "the template's numbers ignore tasks that cannot be imported",
        f"{FOLDER}/planning.py",
        "    _import_tasks()\n",
        "",
        TESTS,
    ),
    Mutation(
        "the template deletes records before messages",
        f"{FOLDER}/planning.py",
        "if days <= kept:",
        "if False:",
        TESTS,
    ),
    Mutation(
        "the template has one rate of maintenance for all projects",
        f"{FOLDER}/planning.py",
        'rate="rate(1 minute)" if scheduled or relays else "rate(1 hour)",',
        'rate="rate(1 hour)",',
        TESTS,
    ),
    Mutation(
        "a template mixes regions",
        f"{FOLDER}/addresses.py",
        "if len(set(places.values())) > 1:",
        "if False:",
        TESTS,
    ),
    Mutation(
        "a template creates two resources of one name",
        f"{FOLDER}/addresses.py",
        "if other != alias:",
        "if False:",
        TESTS,
    ),
    Mutation(
        "a template contains FIFO queues",
        f"{FOLDER}/addresses.py",
        "if problem := problem_of(url):",
        "if problem := None:",
        TESTS,
    ),
    Mutation(
        "the template's functions read all queues",
        f"{FOLDER}/permissions.py",
        'reading = Statement("ReadQueues", _POLLING, _queues(own))',
        'reading = Statement("ReadQueues", _POLLING, _queues(queues))',
        TESTS,
    ),
    Mutation(
        "the template's functions cannot postpone messages",
        f"{FOLDER}/permissions.py",
        '("sqs:ChangeMessageVisibility",)',
        "()",
        TESTS,
    ),
    Mutation(
        "the template grants the key for every service",
        f"{FOLDER}/permissions.py",
        '(Target("arn", kms_key),), via),)',
        '(Target("arn", kms_key),)),)',
        TESTS,
    ),
    Mutation(
        "the template lets the code of a function manage interfaces",
        f"{FOLDER}/described.py",
        'return "Allow" if self.denied_to is None else "Deny"',
        'return "Allow"',
        TESTS,
    ),
    Mutation(
        "the template's functions cannot read their secrets",
        f"{FOLDER}/permissions.py",
        "        *_read_secrets(secrets),\n",
        "",
        TESTS,
    ),
    Mutation(
        "the template's mapping ignores the response of the handler",
        f"{FOLDER}/cloudformation.py",
        '["ReportBatchItemFailures"], RESPONSES_REPORTED',
        '["None"], RESPONSES_REPORTED',
        DEPLOYED,
    ),
    Mutation(
        "the template's queues accept requests without TLS",
        f"{FOLDER}/cloudformation.py",
        '"Condition": {"Bool": {"aws:SecureTransport": "false"}},',
        '"Condition": {"Bool": {"aws:SecureTransport": "true"}},',
        TESTS,
    ),
    Mutation(
        "the template lets schedules of other accounts use the role",
        f"{FOLDER}/cloudformation.py",
        'condition: Value = {"StringEquals": {"aws:SourceAccount": _ACCOUNT}, "ArnEquals": source}',
        'condition: Value = {"ArnEquals": source}',
        TESTS,
    ),
    Mutation(
        "the template lets rules of other accounts invoke the function",
        f"{FOLDER}/cloudformation.py",
        '                "SourceAccount": _ACCOUNT,\n',
        "",
        TESTS,
    ),
    Mutation(
        "the template's dead letter queue is a circle of references",
        f"{FOLDER}/cloudformation.py",
        '[_local_arn("sqs", queue.name)], f"!GetAtt',
        '[Tag("GetAtt", f"{own}.Arn")], f"!GetAtt',
        TESTS,
    ),
    Mutation(
        "words of YAML change their type",
        f"{FOLDER}/yaml_text.py",
        "_PLAIN.fullmatch(value) and not _WORDS_OF_YAML.fullmatch(value):",
        "_PLAIN.fullmatch(value):",
        TESTS,
    ),
    Mutation(
        "Terraform evaluates a string of the project",
        f"{FOLDER}/hcl_text.py",
        '.replace("${", "$${")',
        "",
        TESTS,
    ),
    Mutation(
        "Terraform deploys to any account",
        f"{FOLDER}/terraform.py",
        "    if expected is None:\n        return Block",
        "    if True:\n        return Block",
        TESTS,
    ),
    Mutation(
        "the application may not store large arguments",
        "operations/infrastructure/permissions.py",
        "*storing, *_use_key",
        "*_use_key",
        "tests/operations/test_infrastructure.py::TestBucket",
    ),
    Mutation(
        "the template creates a bucket that may exist",
        "operations/infrastructure/buckets.py",
        "days if create and stores else None",
        "days if stores else None",
        "tests/operations/test_infrastructure.py::TestBucket",
    ),
    Mutation(
        "the bucket of large arguments is deleted with the stack",
        "operations/infrastructure/cloudformation_bucket.py",
        '"DeletionPolicy": Noted("RetainExceptOnCreate", OBJECTS_KEPT)',
        '"DeletionPolicy": "Delete"',
        "tests/operations/test_infrastructure.py::TestBucket",
    ),
)
