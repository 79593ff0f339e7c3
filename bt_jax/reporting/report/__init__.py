"""The page report.html: what a run keeps for it (stored.py), how it is read (run.py), drawn (figures.py) and written (page.py)."""
