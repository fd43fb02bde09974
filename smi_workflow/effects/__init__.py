"""The handlers of the effects: each asks the world for one thing, and reports what it found as an outcome."""
