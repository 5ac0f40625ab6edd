"""`dangerous-driving demo`: the whole platform on one machine, on the embedded default, as separate processes."""
