"""Measure memory and latency of bundles in fresh processes."""
