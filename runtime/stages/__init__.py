"""The networks of the pipeline, one file each, and what surrounds them: crops, heatmaps, joints."""
