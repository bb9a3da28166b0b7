"""Runs recorded models on one device: batch state in, sampled tokens out."""
