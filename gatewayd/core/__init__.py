"""Pure decisions: no asyncio, sockets, clock, chance or logging, and nothing of ours imported."""
