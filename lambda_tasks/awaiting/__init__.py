"""Wait for the end of an invocation, and read its result."""
