"""Background services whose end is ordered: nesting is the order of stopping.

`background(...)` runs services for the length of a block. Cancelling what is around the block ends the block first and
the services after it, so those who lean on a service have ended when it does. A service that fails cancels the block.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio


@asynccontextmanager
async def background(*services: Callable[[], Awaitable[Any]]) -> AsyncIterator[None]:
    """Runs the services until the block has ended, even if it ends by cancellation."""
    scopes: list[trio.CancelScope] = []

    async def run(service: Callable[[], Awaitable[Any]], scope: trio.CancelScope) -> None:
        with scope:
            await service()

    async with trio.open_nursery() as nursery:
        for service in services:
            scope = trio.CancelScope(shield=True)
            scopes.append(scope)
            nursery.start_soon(run, service, scope)
        try:
            yield
        finally:
            for scope in scopes:
                scope.cancel()
