"""Simulated hardware: the engine as it is, on a device that is a profile and a clock."""
