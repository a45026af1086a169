"""Django settings of the peer that BENCH_PEER names, or of all peers, for the migrations, if it is not set."""

from __future__ import annotations

import os

from benchmarks.peers.contenders import PEERS, named
from benchmarks.settings import *  # noqa: F403
from benchmarks.settings import INSTALLED_APPS as OURS

if "BENCH_PEER" in os.environ:
    _chosen = [named(os.environ["BENCH_PEER"])]
else:
    _chosen = [peer for peer in PEERS if peer.migrates and not peer.missing()]

INSTALLED_APPS = list(dict.fromkeys([*OURS, *(app for peer in _chosen for app in peer.apps)]))
SILENCED_SYSTEM_CHECKS = ["lambda_tasks.W001"]
for _peer in _chosen:
    globals().update(_peer.settings)
