"""The POWER platform: the native kernels of `csrc/cpu` in their VSX tier."""
