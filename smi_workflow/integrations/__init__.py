"""Clients of the outside world, one per service: they know no job and no state."""
