"""Names → manifests → files: what is stored, where it came from, and what it can do."""
