"""The formats in which poses are written, one module each."""
