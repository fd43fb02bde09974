"""Owns the seeded simulation and the model check: the real engine, jobs and effects in a world that fails."""
