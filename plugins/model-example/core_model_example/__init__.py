"""SmolLM3, which core does not have: how a plugin adds a model architecture."""
