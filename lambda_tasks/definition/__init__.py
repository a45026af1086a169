"""The definition of a task: its options, its signature, and the conversion of its arguments."""
