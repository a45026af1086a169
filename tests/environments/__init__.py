"""Processes that are prepared before their first message."""
