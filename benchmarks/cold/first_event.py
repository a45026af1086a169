"""Import a handler and call it with one event, as a new container does, and print the cost.

python first_event.py MODULE EVENT
"""

# The imports are part of the measurement.
# ruff: noqa: E402

import gc
import os
import time

if os.environ.get("COLD_COLLECTOR") == "off":
    gc.disable()

wall, cpu = time.perf_counter(), time.process_time()

import importlib
import json
import sys

answer = importlib.import_module(sys.argv[1]).handler(json.loads(sys.argv[2]), None)

wall, cpu = time.perf_counter() - wall, time.process_time() - cpu

from peak import say

assert answer == {"batchItemFailures": []}, answer
say(wall, cpu)
