"""The processes that consume the queue: Dramatiq actors, and the relay that rings what is due."""
