"""Cameras: sources and readers. The first station of the flow."""
