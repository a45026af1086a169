"""Messages as they are sent and received: the invocation, its ids, and its deliveries."""
