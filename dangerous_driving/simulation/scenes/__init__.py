"""Simulated road scenes: rendered pictures with exact ground truth, and nothing of a real place or person."""

from dangerous_driving.simulation.scenes.scene import Scene, SceneFrame, TrueGroup, TrueObject
from dangerous_driving.simulation.scenes.spec import Light, Scenario, SceneSpec, Weather

__all__ = ["Light", "Scenario", "Scene", "SceneFrame", "SceneSpec", "TrueGroup", "TrueObject", "Weather"]
