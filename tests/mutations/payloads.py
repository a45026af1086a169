"""Mutations of arguments outside of their message, of signatures and of encrypted arguments."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

LARGE: Final = "tests/backends/test_large_arguments.py"
SIGNING: Final = "tests/wire/test_signing.py"
ENCRYPTION: Final = "tests/wire/test_encryption.py"

MUTATIONS: Final = (
    Mutation(
        "a job on AWS Batch is not verified",
        "operations/batch_jobs.py",
        "    if keys := app_settings.signing_keys:\n",
        "    if not (keys := ['k' * 32]):\n",
        "tests/operations/test_batch_jobs.py::TestMessages",
    ),
    Mutation(
        "a job on AWS Batch is not signed",
        "backends/batch_jobs.py",
        "body = signed_if_configured(job.body, attributes)",
        "body = job.body",
        "tests/operations/test_batch_jobs.py::TestMessages",
    ),
    Mutation(
        "large arguments are not stored outside of a job on AWS Batch",
        "backends/sqs.py",
        "            return self._jobs().excessive_size(job) > 0\n",
        "            return False\n",
        "tests/operations/test_batch_jobs.py::TestMessages",
    ),
    Mutation(
        "stored arguments are not compared with their digest",
        "backends/large_arguments.py",
        "        if not stored.belongs_to(text):\n",
        "        if False:\n",
        LARGE + "::TestRedelivery",
    ),
    Mutation(
        "a message names any bucket",
        "backends/large_arguments.py",
        "        if place is None:\n",
        "        if place is None and (place := Bucket(stored.place)) is None:\n",
        LARGE + "::TestRedelivery",
    ),
    Mutation(
        "an ended task with deleted arguments stays on the queue",
        "execution/pipeline.py",
        "            if has_ended(message_id):\n",
        "            if False:\n",
        LARGE + "::TestRedelivery",
    ),
    Mutation(
        "missing arguments are acknowledged",
        "execution/pipeline.py",
        "            if has_ended(message_id):\n",
        "            if True:\n",
        LARGE + "::TestRedelivery",
    ),
    Mutation(
        "a delivery does not count as a use of stored arguments",
        "backends/places.py",
        "                self.renew(stored, delay=0)\n",
        "                pass\n",
        LARGE + "::TestCleanup",
    ),
    Mutation(
        "the cleanup deletes arguments of messages in the outbox",
        "backends/unused_arguments.py",
        "waiting, spared = _waiting(), set[UUID]()",
        "waiting, spared = set[UUID](), set[UUID]()",
        LARGE + "::TestOutbox",
    ),
    Mutation(
        "the cleanup keeps arguments for a week",
        "backends/unused_arguments.py",
        "max(retention_days, KEPT_DAYS)",
        "retention_days",
        LARGE + "::TestCleanup",
    ),
    Mutation(
        "the relay does not count as a use of stored arguments",
        "backends/batches.py",
        "job if job.message.stored is None else self._transport.stow(job)",
        "job",
        LARGE + "::TestOutbox",
    ),
    Mutation(
        "retries store their arguments again",
        "backends/sqs.py",
        "            (self._large_arguments or _large_arguments()).renew(stored, delay=job.delay)\n            return job\n",
        "            pass\n",
        LARGE,
    ),
    Mutation(
        "execute_now() stores arguments in a transaction that may be rolled back",
        "sending/outgoing.py",
        "if reference is not None and reference.is_in_database and is_open(connections[job.database]):",
        "if False:",
        LARGE + "::TestTransaction",
    ),
    Mutation(
        "arguments are stored in any database",
        "backends/places.py",
        "        if job.database not in (known := databases_with_arguments()):\n",
        "        if job.database not in (known := [job.database]):\n",
        LARGE + "::TestTransaction",
    ),
    Mutation(
        "an old object in a bucket is not renewed",
        "backends/bucket.py",
        '        self._renew_if_old(stored, answer["LastModified"])\n',
        "",
        LARGE + "::TestBucket",
    ),
    Mutation(
        "attributes are not signed",
        "wire/signing.py",
        "    for name in sorted(_SIGNED & attributes.keys()):\n",
        "    for name in ():\n",
        SIGNING + "::TestRefused",
    ),
    Mutation(
        "the parts of a signed message have no lengths",
        "wire/signing.py",
        'hashed.update(b"%d:%b" % (len(part), part))',
        "hashed.update(part)",
        SIGNING,
    ),
    Mutation(
        "workers do not verify signatures",
        "handler.py",
        "self._verified(delivery) if self._signing_keys else delivery.body",
        "delivery.body",
        SIGNING + "::TestRefused",
    ),
    Mutation(
        "a wrong signature counts as none",
        "wire/signing.py",
        "    if match is None:\n",
        "    if match is None or app_settings.accept_unsigned is True:\n",
        SIGNING + "::TestKeys",
    ),
    Mutation(
        "unsigned messages are accepted forever",
        "wire/signing.py",
        "datetime.now(timezone.utc) < setting",
        "True",
        SIGNING + "::TestKeys",
    ),
    Mutation(
        "only the first key verifies",
        "wire/signing.py",
        "    for key in keys:\n",
        "    for key in keys[:1]:\n",
        SIGNING + "::TestKeys",
    ),
    Mutation(
        "the size of a message leaves out its signature",
        "backends/sqs_messages.py",
        " + (SIGNATURE_BYTES if app_settings.signing_keys else 0)",
        "",
        SIGNING + "::TestSigned",
    ),
    Mutation(
        "a redriven message keeps the signature for other attributes",
        "operations/dead_letters.py",
        "        body = signed_again(body, before, unpacked(_texts(attributes)))\n",
        "",
        SIGNING + "::TestOtherPrograms",
    ),
    Mutation(
        "messages contain sensitive arguments",
        "jobs.py",
        "(self.sent_message if self.task is not None and self.task.sensitive else self.message).to_body()",
        "self.message.to_body()",
        ENCRYPTION,
    ),
    Mutation(
        "stored arguments are not encrypted",
        "backends/large_arguments.py",
        "job.sent_message.kwargs_text()",
        "job.message.kwargs_text()",
        ENCRYPTION,
    ),
    Mutation(
        "an encrypted argument may be moved",
        "wire/encryption.py",
        "        if content[:2] != [message.task_name, name]:\n",
        "        if False:\n",
        ENCRYPTION,
    ),
    Mutation(
        "an argument is encrypted twice",
        "wire/encryption.py",
        " and not _is_encrypted(message.kwargs[name])]",
        "]",
        ENCRYPTION,
    ),
)
