"""Handle one delivery of one invocation: resolve, claim, lock, limit, call, classify, record."""
