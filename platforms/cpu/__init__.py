"""The CPU platform: attention in native kernels (`csrc/cpu`), the rest in torch."""
