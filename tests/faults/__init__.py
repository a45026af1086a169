"""What can happen to a task between its commit and its record, and what must then be true."""
