"""Evaluation of prompts and models: cases with known truth, metrics, comparison, the gate in front of a new prompt."""
