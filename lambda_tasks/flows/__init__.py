"""Flows: the invocations that follow the end of a task, of a chain of tasks, or of a group of tasks."""
