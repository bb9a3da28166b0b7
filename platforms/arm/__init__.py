"""The ARM platform: the native kernels of `csrc/cpu` in their NEON tiers."""
