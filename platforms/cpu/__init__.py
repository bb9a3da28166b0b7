"""The CPU platform: native kernels (`csrc/cpu`), replayed as one native program a step."""
