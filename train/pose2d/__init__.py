"""Training of 2D pose networks on rendered people."""
