"""Both servers, each with a healthy client beside it whose every request must be served until the test ends."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.gateway.hostile.rig import BROKER, NAMESRV, Server, running_broker, running_namesrv

ACCIDENTS = frozenset({"request_failed", "connection_failed"})
"""What a server logs when it was surprised; whatever a peer says must be refused on purpose."""


@pytest.fixture(autouse=True)
def no_accidents() -> Iterator[None]:
    with capture_logs() as logs:
        yield
    assert [entry for entry in logs if entry["event"] in ACCIDENTS] == []


@pytest.fixture(params=[NAMESRV, BROKER])
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Server]:
    running = {NAMESRV: running_namesrv, BROKER: running_broker}[request.param]
    async with running(tmp_path) as served:
        yield served


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Server]:
    async with running_broker(tmp_path) as served:
        yield served


@pytest.fixture
async def namesrv(tmp_path: Path) -> AsyncIterator[Server]:
    async with running_namesrv(tmp_path) as served:
        yield served


@pytest.fixture
async def idle_server(kind: str, tmp_path: Path) -> AsyncIterator[Server]:
    """One that has patience with idle connections for a second only."""
    running = {NAMESRV: running_namesrv, BROKER: running_broker}[kind]
    async with running(tmp_path, server_channel_max_idle_time_seconds=1) as served:
        yield served
