"""The task of each peer, which has two arguments and does nothing, and the functions that enqueue it."""
