"""What a run writes: journal, files, report, drawings."""
