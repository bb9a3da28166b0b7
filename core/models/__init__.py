"""Model architectures. Each file says only what differs from the shared blocks."""
