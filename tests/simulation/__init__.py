"""A world in which everything goes wrong: real invocations in forked processes, and a queue that forgets nothing.

    python -m tests.simulation sweep              # every kind of task at every point with every fault
    python -m tests.simulation chaos --seeds 24   # random worlds, each from its seed
    python -m tests.simulation crashes            # worlds whose PostgreSQL crashes, and starts again

Each takes `--outbox yes`, or SIMULATION_OUTBOX=yes: then messages go through the outbox, and processes that
relay it are struck too.

The parent process plays SQS: visibility, receive counts, dead letters, duplicates. Each invocation of the
handler is a forked child with real connections to the database and to Redis, struck at a named point of the
protocol. When nothing moves any more, the books are checked: see `invariants`.
"""
