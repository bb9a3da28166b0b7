"""A whole server in one thread and no time: real scheduler, cache, engine, client and supervisor among seeded faults."""
