"""OpenVINO as a platform of `core`: the recorded program becomes one OpenVINO model for the CPU device."""

__version__ = "0.1.0"
