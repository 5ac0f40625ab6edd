"""Dagster definitions: thin assets, sensors, schedules and checks over the functions of the package."""
