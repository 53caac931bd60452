"""Which settings a search finds, over kits and models: what defaults are taken from."""
