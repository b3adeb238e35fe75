"""The folder that mp-export writes and mp-run reads."""
