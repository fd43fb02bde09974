"""The web: what buyers, Stripe and Upsampler reach by HTTP. Flask, served by gunicorn."""
