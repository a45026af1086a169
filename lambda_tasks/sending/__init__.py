"""From the call to the queue: sending when the transaction commits."""
