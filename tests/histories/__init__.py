"""Lives of jobs, recorded under each definition that was ever released, and replayed against today's."""
