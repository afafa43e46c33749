"""Pure decisions: no asyncio, sockets, clock, randomness or logging, and nothing of ours imported."""
