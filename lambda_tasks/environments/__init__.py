"""Prepare a process before its first message, where Lambda makes environments in advance or from a snapshot."""
