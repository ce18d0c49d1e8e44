"""Who is resident: leases, loads, evictions and the workers' processes."""
