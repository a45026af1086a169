"""Transports: where jobs are sent."""
