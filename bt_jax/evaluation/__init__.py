"""Evaluation of features: kNN, linear probes, transfer, and label-free measures."""
