"""Locks for singleton tasks."""
