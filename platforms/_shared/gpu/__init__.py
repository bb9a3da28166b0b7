"""What the GPU platforms share: the seam to torch's device, memory, captured steps, and planning."""
