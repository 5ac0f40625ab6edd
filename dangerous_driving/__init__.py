"""Watches road cameras for dangerous driving.

The folders follow the flow: ``camera`` -> ``detection`` -> ``messaging`` -> ``tasks`` -> ``assessment`` ->
``alerts`` -> ``realtime``; ``ledger`` and ``objects`` are the two stores, ``defs`` is Dagster on top.
"""

__version__ = "0.1.0"
