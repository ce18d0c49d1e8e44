"""Scheduling of models: leases, loads, evictions and worker processes."""
