"""The people in the picture: found, followed from frame to frame, and told apart by ids."""
