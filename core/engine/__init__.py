"""Schedule, execute, update; and the processes around that."""
