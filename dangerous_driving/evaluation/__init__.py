"""Evaluation: how good prompts, models and the detector are, and whether what cameras show has changed."""
