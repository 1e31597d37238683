"""A broker's part in replication, by its role: a master serves slaves, a slave follows and copies its tables."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import trio

from gateway.addresses import parse_addresses
from gateway.broker.groups import GroupTable
from gateway.broker.offsets import OffsetTable
from gateway.broker.slavesync import SlaveSync
from gateway.broker.topics import TopicTable
from gateway.config import BrokerOptions
from gateway.ha.inspection import Inspector
from gateway.ha.locator import MasterLocator
from gateway.ha.master import HaMaster, Identity
from gateway.ha.slave import HaSlave
from gateway.storage import Storage
from store.options import BrokerRole, StoreOptions


class Replication:
    """What runs for replication. `master` is None on a slave, `slave` and `sync` are None on a master."""

    def __init__(
        self,
        options: BrokerOptions,
        store_options: StoreOptions,
        storage: Storage,
        locator: MasterLocator,
        topics: TopicTable,
        groups: GroupTable,
        offsets: OffsetTable,
    ) -> None:
        self.locator = locator
        self.master: HaMaster | None = None
        self.slave: HaSlave | None = None
        self.sync: SlaveSync | None = None
        cluster, broker = options.broker_cluster_name, options.broker_name
        if store_options.broker_role is not BrokerRole.SLAVE:
            namesrvs = [str(address) for address in parse_addresses(options.namesrv_addr)]
            inspector = Inspector(storage, broker, namesrvs)
            self.master = HaMaster(storage, store_options, Identity(cluster, broker), inspect=inspector.compare)
            storage.replicas = self.master.progress
            return
        self.slave = HaSlave(
            storage,
            store_options,
            locator,
            cluster=cluster,
            broker=broker,
            broker_id=options.broker_id,
            address=f"{options.broker_ip1}:{options.listen_port}",
        )
        self.sync = SlaveSync(
            topics,
            groups,
            offsets,
            Path(store_options.store_path_root_dir) / "config" / "delayOffset.json",
            master_address=lambda: locator.master_address if locator.linked else None,
            write_file=storage.write_file,
        )
        storage.also_tell(self.sync.arrived)

    def services(self, listeners: Sequence[trio.SocketListener]) -> list[Callable[[], Awaitable[Any]]]:
        """What runs while the broker does; `listeners` are those of the HA port, which only a master needs."""
        if self.master is not None:
            return [partial(self.master.serve, listeners)]
        assert self.slave is not None
        assert self.sync is not None
        return [self.slave.run, self.sync.run]
