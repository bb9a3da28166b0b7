"""What the platforms of general-purpose processors share: the native kernels of `csrc/cpu`, and what drives them."""
