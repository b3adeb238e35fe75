"""A file for each format that poses are written in."""
