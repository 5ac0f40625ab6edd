"""Simulated parts for development, tests, the demo and benchmarks. They say everywhere that they are simulated."""

from pathlib import Path

#: A YOLO trained on the simulated scenes, and of use for nothing else: see MODEL_CARD.md beside it.
OWN_WEIGHTS = Path(__file__).parent / "weights" / "simulated-scenes.onnx"
