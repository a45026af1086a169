"""The task of each peer, which does nothing with two arguments, and how it is enqueued."""
