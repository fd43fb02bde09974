"""The sale: the job's life, its refunds and payments, prices, and the JobManager. It calls no provider."""
