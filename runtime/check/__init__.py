"""mp-check: what this machine can do, and whether a bundle is right on it."""
