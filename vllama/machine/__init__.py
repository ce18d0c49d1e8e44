"""Information about this machine: GPUs, memory and processes. Independent of scheduling and measuring."""
