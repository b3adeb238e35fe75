"""The networks of the pipeline, one file each, and what goes with them: crops, heatmaps, joints."""
