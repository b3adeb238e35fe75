"""Run an exported pose pipeline on video: numpy, click and one backend, never torch."""
