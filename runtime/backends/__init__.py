"""Backends: each turns one graph file into an Engine."""
