"""Files of requests, answered as a batch: OpenAI's batch format in, and out."""
