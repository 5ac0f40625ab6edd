"""The sub-commands of `dangerous-driving`, a module for each group."""
