"""Fork the workers of engine tests from one process that has imported vLLM.

`host` runs in that process, `serving` in each gateway, and `starting` in the tests. A worker that needs another
environment at import time than the host has is started as users start it.
"""
