"""Simulate faults at every failpoint, with real invocations in forked processes and a simulated queue.

    python -m tests.simulation sweep              # every kind of task at every failpoint with every fault
    python -m tests.simulation chaos --seeds 24   # random worlds, each generated from its seed
    python -m tests.simulation crashes            # worlds whose PostgreSQL server crashes and restarts
    python -m tests.simulation ticks              # worlds with periodic tasks

Each command accepts `--outbox yes`, or SIMULATION_OUTBOX=yes. Messages then go through the outbox, and faults are
also injected into relays.

The parent process simulates SQS: visibility, receive counts, dead letters, duplicates. Each invocation of the
handler is a forked child process with real connections to the database and Redis, in which faults are injected at
failpoints. When all activity has ended, `invariants` checks orders, effects and records.
"""
