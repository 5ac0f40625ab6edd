"""Notifications: who is told of an alert, in which words, by which way, and how often at most."""
