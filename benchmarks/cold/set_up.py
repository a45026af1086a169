"""Set Django up and import a module, as a web process does, and print the cost.

python set_up.py MODULE
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
import sys

import django

django.setup()
importlib.import_module(sys.argv[1])

wall, cpu = time.perf_counter() - wall, time.process_time() - cpu

from peak import say

say(wall, cpu)
