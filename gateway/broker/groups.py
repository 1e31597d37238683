"""GroupTable: the settings of every consumer group, and `config/subscriptionGroup.json`.

A group that is asked for and unknown comes into being with default settings if autoCreateSubscriptionGroup allows it,
as with official's SubscriptionGroupManager. The number of groups is bounded, because any client can invent names.

What only newer brokers know of a group, or beside the groups, means nothing here; it is kept for them.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec
import structlog

from gateway.broker import names
from gateway.broker.configfile import ConfigFile, EntryTexts
from gateway.routing import Refused
from protocol.bodies import DataVersion, GroupTableBody, SubscriptionGroupConfig
from protocol.codes import ResponseCode
from protocol.jsonwriter import dumps
from store.jsonfile import load_json

MAX_GROUPS = 100_000
MAX_TABLE_BYTES = 15 << 20  # slaves get the whole table in one frame
ENTRY_BYTES = 280  # what a group of 4.x takes there beside its name, at most
MAX_RETRY_QUEUES = 1024

log = structlog.get_logger(__name__)


class GroupOptions(Protocol):
    """The broker's option that decides whether groups come into being by themselves."""

    auto_create_subscription_group: bool


class GroupTable:
    """All consumer groups by name; `now_ms` is the clock that dates changes."""

    def __init__(self, options: GroupOptions, path: Path, now_ms: Callable[[], int]) -> None:
        self._options = options
        self._now_ms = now_ms
        self._groups = {name: SubscriptionGroupConfig(group_name=name) for name in names.SYSTEM_GROUPS}
        self._others: Mapping[str, Any] | None = None
        self.data_version = DataVersion(counter=0, timestamp=now_ms())
        self._texts = EntryTexts()
        self.file = ConfigFile(path, self.encode, now_ms)
        body = load_json(path, GroupTableBody.decode)
        if body is not None:
            self._groups.update(_sound(body))
            self._others = body.others
            self.data_version = body.data_version
        self._bytes = self._count_bytes()

    def __len__(self) -> int:
        return len(self._groups)

    def __contains__(self, group: str) -> bool:
        return group in self._groups

    def get(self, group: str) -> SubscriptionGroupConfig | None:
        """The group's settings if it exists; never creates it."""
        return self._groups.get(group)

    def names(self) -> list[str]:
        return list(self._groups)

    def find(self, group: str) -> SubscriptionGroupConfig:
        """The group's settings; creates the group where that is allowed.

        Refuses with SUBSCRIPTION_GROUP_NOT_EXIST where it is not, and names that may not be.
        """
        config = self._groups.get(group)
        if config is not None:
            return config
        names.check_group(group)
        if not self._options.auto_create_subscription_group and not group.startswith(names.SYSTEM_GROUP_PREFIX):
            raise Refused(ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, f"subscription group [{group}] does not exist")
        config = SubscriptionGroupConfig(group_name=group)
        self._bytes += self._check_room([config])
        self._groups[group] = config
        log.info("group_created", group=group)
        self._next_version()
        self.file.changed()
        return config

    def update(self, configs: Iterable[SubscriptionGroupConfig]) -> None:
        """Creates or replaces groups, all or none; they are on disk when this returns."""
        configs = list(configs)
        for config in configs:
            names.check_group(config.group_name)
            if not 0 <= config.retry_queue_nums <= MAX_RETRY_QUEUES:
                raise Refused(
                    ResponseCode.SYSTEM_ERROR,
                    f"group {config.group_name}: {config.retry_queue_nums} retry queues,"
                    f" allowed are 0 to {MAX_RETRY_QUEUES}",
                )
        self._bytes += self._check_room({config.group_name: config for config in configs}.values())
        for config in configs:
            self._groups[config.group_name] = config
        if configs:
            self._next_version()
            self.file.save()

    def delete(self, group: str) -> bool:
        """Forgets a group's settings; returns whether there were any. On disk when this returns."""
        config = self._groups.pop(group, None)
        if config is None:
            return False
        self._bytes -= _text_bytes(config)
        self._forget_elsewhere(group)
        self._next_version()
        self.file.save()
        return True

    def replace(self, body: GroupTableBody) -> bool:
        """On a slave: becomes the master's table. Returns whether it was another one; raises OSError."""
        if body.data_version == self.data_version:
            return False
        groups = _sound(body)
        self._groups.clear()
        self._groups.update(groups)
        self._others = body.others
        self._bytes = self._count_bytes()
        self.data_version = body.data_version
        self.file.save()
        return True

    def snapshot(self) -> GroupTableBody:
        """The table as it is now; shares its configs, which never change."""
        others = None if self._others is None else dict(self._others)
        table = dict(self._groups)
        return GroupTableBody(data_version=self.data_version, subscription_group_table=table, others=others)

    def encode(self, *, pretty: bool = True) -> bytes:
        """The text of subscriptionGroup.json, or it without line breaks; equal to that of `snapshot`, but fast."""
        return self._texts.encode(
            self.data_version, "subscriptionGroupTable", self._groups, others=self._others, pretty=pretty
        )

    def _check_room(self, configs: Collection[SubscriptionGroupConfig]) -> int:
        """By how many bytes the table grows with these, of which no two have one name."""
        replaced = [known for config in configs if (known := self._groups.get(config.group_name)) is not None]
        if len(self._groups) + len(configs) - len(replaced) > MAX_GROUPS:
            raise Refused(ResponseCode.SYSTEM_ERROR, f"this broker has its limit of {MAX_GROUPS} groups")
        growth = sum(map(_text_bytes, configs)) - sum(map(_text_bytes, replaced))
        if growth > 0 and self._bytes + growth > MAX_TABLE_BYTES:
            remark = f"the settings of this broker's groups take their limit of {MAX_TABLE_BYTES} bytes"
            raise Refused(ResponseCode.SYSTEM_ERROR, remark)
        return growth

    def _forget_elsewhere(self, group: str) -> None:
        """A group's entry in another table goes with the group, as official's forbiddenTable has it."""
        others = dict(self._others or {})
        for name, table in others.items():
            if isinstance(table, dict) and group in table:
                others[name] = {key: value for key, value in table.items() if key != group}
                self._others = others

    def _count_bytes(self) -> int:
        return sum(map(_text_bytes, self._groups.values())) + _others_bytes(self._others)

    def _next_version(self) -> None:
        version = self.data_version
        self.data_version = DataVersion(counter=version.counter + 1, timestamp=self._now_ms())


def _text_bytes(config: SubscriptionGroupConfig) -> int:
    """What the group takes in the table's text, at most."""
    return ENTRY_BYTES + 2 * len(config.group_name) + _others_bytes(config.others)


def _others_bytes(others: Mapping[str, Any] | None) -> int:
    return len(dumps(others)) if others else 0


def _sound(body: GroupTableBody) -> dict[str, SubscriptionGroupConfig]:
    """The groups of a file or of a master, without those whose names may not be; they are logged."""
    sound = {}
    for group, config in body.subscription_group_table.items():
        if names.is_group(group):
            sound[group] = config if config.group_name == group else msgspec.structs.replace(config, group_name=group)
        else:
            log.warning("group_left_out", group=group, reason="not a group's name")
    return sound
