"""Mutations of locks and thread-local state in forked processes."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

TESTS: Final = "tests/project/test_forks.py"

MUTATIONS: Final = (
    Mutation(
        "a held lock stays held in a forked process",
        "foundation/forks.py",
        "os.register_at_fork(after_in_child=_free_all)",
        "",
        TESTS,
    ),
    Mutation(
        "a forking thread loses the lock that it holds",
        "foundation/forks.py",
        "        if self._owner != threading.get_ident():\n",
        "        if True:\n",
        TESTS,
    ),
    Mutation(
        "the lock of the id generator stays held in a forked process",
        "wire/ids.py",
        "os.register_at_fork(after_in_child=_renew_lock)",
        "",
        TESTS,
    ),
    Mutation(
        "half-loaded plugins stay half-loaded in a forked process",
        "plugins.py",
        "        _unregister_all()  # another thread may have loaded some of them before this process was forked\n",
        "",
        TESTS,
    ),
    Mutation(
        "a forked process uses its parent's eager queue",
        "backends/eager.py",
        "os.register_at_fork(after_in_child=_leave_line)",
        "",
        TESTS,
    ),
)
