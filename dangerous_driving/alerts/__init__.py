"""Alerts: a dangerous scene over time, opened by assessments, closed by silence, judged by a person."""
