"""People rendered with exact truth.

World axes: metres, y up, the floor is y = 0. Camera axes: x right, y down, z forward. Pixels: whole
numbers are centres, (0, 0) is the centre of the upper left one. Letters: V vertices, F triangles,
B bones, J joints, H W pixels. Times of a moment are (before, now, after).
"""
