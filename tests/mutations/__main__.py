"""Run the mutations as a command; see the package."""

from __future__ import annotations

import sys

from tests.mutations import all_mutations, is_noticed


def main(words: list[str]) -> int:
    chosen = [mutation for mutation in all_mutations() if not words or any(word in mutation.name for word in words)]
    unnoticed = 0
    for mutation in chosen:
        noticed = is_noticed(mutation)
        unnoticed += not noticed
        print(f"{'red  ' if noticed else 'GREEN'}  {mutation.name}", flush=True)  # noqa: T201, it is a command
    print(f"{len(chosen)} mutations, {unnoticed} unnoticed.")  # noqa: T201
    return 1 if unnoticed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
