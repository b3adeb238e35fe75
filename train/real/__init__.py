"""Real people: crops with a teacher's joints among the rendered ones, and what is measured on both.

No picture is part of the project; the crops come from a folder of the assets. Joints that the
teacher is not sure of are unknown: they teach nothing, neither a place nor that they are absent.
"""
