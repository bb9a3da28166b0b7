"""A KV connector for core that keeps blocks in Redis."""
