"""API keys: the key file, what each key allows, and the record of its usage. No HTTP, no asyncio."""
