"""The model store: names, manifests and files."""
