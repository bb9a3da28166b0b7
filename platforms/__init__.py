"""Platforms that come with `core`. Each is loaded through the entry-point group `core.platforms`, like anyone's."""
