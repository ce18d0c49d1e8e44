"""Measures any server from outside."""
