"""What gateway and worker say to each other; both import it, and it imports neither."""
