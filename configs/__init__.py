"""One file per run; each docstring gives source, hardware, time and expected result."""
