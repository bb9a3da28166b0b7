"""Models on disk and on the hub: finding them, describing them, reading their weights. Only `loader` needs torch."""
