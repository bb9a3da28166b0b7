"""Executors: how steps reach the devices. They know the worker by name only, so that they import no runner."""
