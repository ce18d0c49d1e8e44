"""This machine as it is: its GPUs, its memory and its processes. Knows nothing of what they are asked for."""
