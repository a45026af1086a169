"""Run a Lambda handler on the local machine, with Lambda's runtime client and messages from SQS queues.

`LocalWorker` replaces the two parts of AWS between a queue and a handler: the event source mapping that polls SQS,
and the Runtime API that passes events to a process of `awslambdaric`. Nothing in a handler is stubbed: it runs in
that process, with the same context object and deadline as on AWS.
"""
