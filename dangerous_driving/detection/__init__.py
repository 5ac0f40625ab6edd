"""Detection: engines, grouping, priority, crops and the service that publishes detection results."""
