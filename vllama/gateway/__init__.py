"""HTTP server on port 11434, which selects a worker for each request and relays its reply."""
