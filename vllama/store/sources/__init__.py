"""Where models come from, one module each; `vllama.store.pull` chooses."""
