"""Simulated parts, for development, tests, the demo and benchmarks. Nothing else imports them."""
