"""Namesrv: what the handlers work on, a small record of collaborators, and what ends brokers from outside a request."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from gateway.config import NamesrvOptions
from gateway.namesrv.kvconfig import KvConfig
from gateway.namesrv.routes import LiveBroker, RouteTable

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Namesrv:
    """One name server. `save_options` brings changed options to the configuration file and raises OSError."""

    options: NamesrvOptions
    routes: RouteTable
    kv: KvConfig
    save_options: Callable[[Path, Mapping[str, str]], None]

    @property
    def config_file(self) -> Path:
        """Where changes made by wire go: the file that was given with -c, or configStorePath."""
        return Path(self.options.source or self.options.config_store_path)

    def connection_closed(self, connection: object) -> None:
        """Lets the brokers go that registered over this connection."""
        for broker in self.routes.connection_closed(connection):
            log_gone(broker, "connection closed")

    def expire(self) -> None:
        """Forgets silent brokers and closes their connections, so that a living one registers anew."""
        for broker in self.routes.expire():
            log_gone(broker, f"silent for more than {broker.timeout_ms} ms")
            broker.connection.close()


def log_gone(broker: LiveBroker, reason: str) -> None:
    """Says that a broker is not told to clients any more."""
    log.info(
        "broker_gone",
        broker=broker.broker_name,
        broker_id=broker.broker_id,
        address=broker.address,
        reason=reason,
    )
