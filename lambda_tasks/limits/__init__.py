"""Enforce time limits: alarms interrupt a task, and a watchdog ends its process."""
