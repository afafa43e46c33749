"""What lies behind a tunnel, and who comes through it."""

from __future__ import annotations

import asyncio

from gatewayd.core.model import UnixAddress


async def echoed(at: UnixAddress, text: bytes = b"hello\n") -> bytes:
    """Empty when it was closed without a word."""
    async with asyncio.timeout(30):
        reader, writer = await asyncio.open_unix_connection(at.path)
        try:
            writer.write(text)
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()


async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()
