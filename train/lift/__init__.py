"""Training of 2D-to-3D lifters on motion capture."""
