"""Reports of a run: metrics files, progress lines and profiles."""
