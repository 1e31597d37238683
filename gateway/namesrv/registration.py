"""What a broker says of itself, what it is told in return, and what is too much of it. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from protocol.bodies import DataVersion, TopicConfig

MASTER_ID = 0
BROKER_TIMEOUT_MS = 120_000
"""How long a broker that names no time of its own may be silent (official: BROKER_CHANNEL_EXPIRED_TIME)."""

# Whoever reaches the port may register brokers and topics. Real clusters stay far below these.
MAX_BROKERS = 10_000
MAX_QUEUES = 500_000  # topics, counted once for each broker name
MAX_NAME = 1024  # characters of a topic, a broker, a cluster or an address
MAX_FILTER_SERVERS = 100


class RouteTableFull(Exception):
    """A registration goes beyond a limit, which the text names; nothing was changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """Header and body of REGISTER_BROKER."""

    cluster: str
    broker_name: str
    broker_id: int
    address: str
    ha_address: str
    version: DataVersion
    topics: Mapping[str, TopicConfig]
    filter_servers: list[str] | None = None
    timeout_ms: int = BROKER_TIMEOUT_MS
    enable_acting_master: bool | None = None
    zone_name: str | None = None

    def check_size(self) -> None:
        """Raises RouteTableFull for names that nobody needs."""
        filter_servers = self.filter_servers or ()
        if len(filter_servers) > MAX_FILTER_SERVERS:
            raise RouteTableFull(f"{len(filter_servers)} filter servers; at most {MAX_FILTER_SERVERS} are kept")
        names = (self.cluster, self.broker_name, self.address, self.ha_address, self.zone_name or "")
        if max(map(len, (*names, *filter_servers, *self.topics))) > MAX_NAME:
            raise RouteTableFull(f"a name of more than {MAX_NAME} characters")


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """What a registration led to; the master's addresses are there for a slave only."""

    is_new: bool = False
    ignored: bool = False
    replaced_address: str | None = None
    cluster: str = ""
    topics_changed: int = 0
    master_address: str | None = None
    master_ha_address: str | None = None
