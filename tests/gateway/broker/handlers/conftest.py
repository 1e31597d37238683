"""Brokers for the tests of the handlers."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from gateway.broker.app import build_broker
from gateway.broker.clients import ClientTable
from gateway.broker.locks import LockTable
from store.engine import MessageStore
from tests.gateway.broker.fakes import Clock
from tests.gateway.broker.handlers.rig import Rig, options, small_options


@pytest.fixture
def make_rig(tmp_path: Path, nursery: trio.Nursery) -> Iterator[Callable[..., Rig]]:
    """Makes brokers in one directory: `make_rig(option=…, store={…})`; the one before is closed first."""
    stores: list[MessageStore] = []

    def close() -> None:
        while stores:
            stores.pop().close()

    def make_rig(store: dict[str, Any] | None = None, **values: Any) -> Rig:
        close()
        clock = Clock()
        store_options = small_options(tmp_path, **(store or {}))
        message_store = MessageStore.open(store_options, now_ms=clock)
        stores.append(message_store)
        broker = build_broker(options(**values), store_options, message_store)
        broker = replace(broker, clients=ClientTable(clock), locks=LockTable(clock), now_ms=clock)
        return Rig(broker, nursery, clock)

    yield make_rig
    close()


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    return make_rig()
