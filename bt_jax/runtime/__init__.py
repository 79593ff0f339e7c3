"""The runtime of a run: its processes, devices, signals and workdir."""
