"""A trace of requests replayed through the engine itself in virtual time, on a platform that has such a clock."""
