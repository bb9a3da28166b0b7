"""What platforms on torch_xla share: devices that compile each step shape once."""
