"""Test the faults that can affect a task between its commit and its record."""
