"""The engine: a generic, durable workflow executor. It knows no image, no Stripe, no HTTP and no Dramatiq."""
