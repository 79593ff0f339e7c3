"""What a run stands on: processes, devices, signals, and its folder."""
