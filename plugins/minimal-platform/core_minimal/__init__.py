"""The smallest platform: numpy kernels over core's own reference."""
