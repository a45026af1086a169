"""Partition the table of records by the day of their ids, on PostgreSQL, and drop days that are over."""
