"""Measuring: the engine offline, a server under load, and how long one takes to start."""
