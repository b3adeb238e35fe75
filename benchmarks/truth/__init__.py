"""Material whose joints are known, and the distance of poses from them; NumPy alone."""
