"""One file a run; each docstring is a contract: source, hardware, time, expected result."""
