"""Training of the project's own networks, and the rendered world they are trained on."""
