"""The command: see the package."""

from __future__ import annotations

import sys

from tests.mutations import batches, core, databases, doctor, is_noticed, limits, lost, messages, outbox, sending


def main(words: list[str]) -> int:
    mutations = [
        mutation
        for family in (core, limits, databases, batches, lost, messages, doctor, sending, outbox)
        for mutation in family.MUTATIONS
    ]
    chosen = [mutation for mutation in mutations if not words or any(word in mutation.name for word in words)]
    unnoticed = 0
    for mutation in chosen:
        noticed = is_noticed(mutation)
        unnoticed += not noticed
        print(f"{'red  ' if noticed else 'GREEN'}  {mutation.name}", flush=True)  # noqa: T201, it is a command
    print(f"{len(chosen)} mutations, {unnoticed} unnoticed.")  # noqa: T201
    return 1 if unnoticed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
