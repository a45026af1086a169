"""Tests of the invocations that follow others, of chains and of groups."""
