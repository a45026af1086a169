"""Lambda on one's own machine: the real runtime client, fed from real queues.

`LocalWorker` plays the two parts of AWS that stand between a queue and a handler: the event source
mapping that polls SQS, and the Runtime API that feeds a process of `awslambdaric`. Nothing in a
handler is stubbed: it runs in the process, with the context object and under the deadline that it
has on AWS.
"""
