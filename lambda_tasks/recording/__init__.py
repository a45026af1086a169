"""Convert values for records and logs: storable strings, masked arguments, and tracebacks."""
