"""Stores, which keep the records of invocations."""
