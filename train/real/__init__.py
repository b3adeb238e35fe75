"""Real people: crops with a teacher's joints, trained on among the rendered ones, and measurements.

No picture is part of the project; the crops come from a folder of the assets. Joints that the
teacher is not sure of are unknown: from them a network learns neither a place nor an absence.
"""
