"""OpenAI's HTTP API on aiohttp. Imports neither torch nor transformers."""
