"""TopicTable: every topic of this broker with its queues and permissions, and `config/topics.json`.

System topics exist from the start and are written with the next change, as official's TopicConfigManager does it; what
the file says of them wins. Each change gives the table a new DataVersion, which name servers and slaves compare. The
caller tells the name servers (`broker.registration.topic_changed`); a creation that returns has to be told.

Names are checked here before they enter the table, so whoever found a topic in it may use its name as a directory.
The number of topics and of queues per topic is bounded, and so is what all of them take together: name servers and
slaves get the whole table in one frame.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec
import structlog

from gateway.broker import names
from gateway.broker.configfile import ConfigFile, EntryTexts
from gateway.routing import Refused
from protocol.bodies import DataVersion, TopicConfig, TopicFilterType, TopicTableBody
from protocol.codes import PERM_INHERIT, PERM_READ, PERM_WRITE, ResponseCode
from store.jsonfile import load_json

MAX_TOPICS = 100_000
MAX_TABLE_BYTES = 15 << 20
MAX_QUEUES = 65_536
SCHEDULE_QUEUES = 18
BENCHMARK_QUEUES = 1024
CLUSTER_QUEUES = 16
READ_WRITE = PERM_READ | PERM_WRITE
ALL_PERM_BITS = 0b1111
UNIT_FLAG = 1
UNIT_SUBSCRIPTION_FLAG = 2

log = structlog.get_logger(__name__)


class TopicOptions(Protocol):
    """The broker's options that decide which topics exist by themselves."""

    broker_cluster_name: str
    broker_name: str
    auto_create_topic_enable: bool
    default_topic_queue_nums: int
    cluster_topic_enable: bool
    broker_topic_enable: bool
    trace_topic_enable: bool
    msg_trace_topic_name: str


class TopicTable:
    """All topics by name; `now_ms` is the clock that dates changes."""

    def __init__(self, options: TopicOptions, path: Path, now_ms: Callable[[], int]) -> None:
        self._options = options
        self._now_ms = now_ms
        self._own = _own_topics(options)
        self._topics = dict(self._own)
        self.data_version = DataVersion(counter=0, timestamp=now_ms())
        self.get = self._topics.get  # asked by every send and pull
        self._texts = EntryTexts()
        self.file = ConfigFile(path, self.encode, now_ms)
        self._load(path)
        self._bytes = sum(map(_text_bytes, self._topics.values()))

    def _load(self, path: Path) -> None:
        body = load_json(path, TopicTableBody.decode)
        if body is None:
            return
        self._topics.update(_sound(body, self._own))
        if not self._options.auto_create_topic_enable:
            self._topics.pop(names.AUTO_CREATE_TOPIC, None)
        self.data_version = body.data_version

    def __contains__(self, topic: str) -> bool:
        return topic in self._topics

    def __len__(self) -> int:
        return len(self._topics)

    def names(self) -> list[str]:
        return list(self._topics)

    def configs(self) -> list[TopicConfig]:
        return list(self._topics.values())

    # ---- what a topic is

    def is_system(self, topic: str) -> bool:
        """Whether the topic is the broker's own, so that nobody may change or delete it by wire."""
        return topic in self._own or names.is_system_topic(topic)

    def system_topics(self) -> list[str]:
        """The names that tools list as system topics."""
        return sorted(names.SYSTEM_TOPICS.union(self._own))

    def is_ordered(self, topic: str) -> bool:
        config = self._topics.get(topic)
        return config is not None and config.order

    # ---- creation

    def create_on_send(
        self, topic: str, default_topic: str, queue_nums: int, *, topic_sys_flag: int = 0
    ) -> TopicConfig:
        """Creates the unknown topic of a send from the template topic that the client names.

        As official: the template must exist and carry the inherit bit, the new topic gets at most its write queues.
        %RETRY% topics come into being without a template. Refuses with TOPIC_NOT_EXIST otherwise.
        """
        names.check_topic(topic)
        template = self._topics.get(default_topic)
        if template is not None and template.perm & PERM_INHERIT:
            queues = max(1, min(queue_nums, template.write_queue_nums))
            perm = template.perm & ~PERM_INHERIT
            filter_type = template.topic_filter_type
        elif topic.startswith(names.RETRY_PREFIX):
            queues, perm, filter_type = 1, READ_WRITE, TopicFilterType.SINGLE_TAG
        else:
            raise Refused(ResponseCode.TOPIC_NOT_EXIST, f"topic[{topic}] not exist, apply first please!")
        config = TopicConfig(
            topic_name=topic,
            read_queue_nums=queues,
            write_queue_nums=queues,
            perm=perm,
            topic_filter_type=filter_type,
            topic_sys_flag=topic_sys_flag,
        )
        return self._create(config)

    def create_if_absent(
        self, topic: str, queue_nums: int, *, perm: int = READ_WRITE, topic_sys_flag: int = 0
    ) -> tuple[TopicConfig, bool]:
        """The topic as it is, or created for the broker's own needs (retry, dead letters, transactions).

        The second value says whether it was created.
        """
        known = self._topics.get(topic)
        if known is not None:
            return known, False
        names.check_topic(topic)
        _check_queues(topic, queue_nums, queue_nums)
        config = TopicConfig(
            topic_name=topic,
            read_queue_nums=queue_nums,
            write_queue_nums=queue_nums,
            perm=perm,
            topic_sys_flag=topic_sys_flag,
        )
        return self._create(config), True

    def _create(self, config: TopicConfig) -> TopicConfig:
        self._bytes += self._check_room([config])
        self._topics[config.topic_name] = config
        log.info("topic_created", topic=config.topic_name, queues=config.write_queue_nums, perm=config.perm)
        self._next_version()
        self.file.changed()
        return config

    # ---- changes that somebody asked for by name

    def update(self, configs: Iterable[TopicConfig]) -> list[str]:
        """Creates or replaces topics, all or none; they are on disk when this returns. Returns the names.

        An existing topic keeps its order flag, which the name servers own.
        """
        configs = list(configs)
        for config in configs:
            self._check_update(config)
        self._bytes += self._check_room({config.topic_name: config for config in configs}.values())
        for config in configs:
            order = self.is_ordered(config.topic_name)
            self._topics[config.topic_name] = msgspec.structs.replace(config, order=order)
        if configs:
            self._next_version()
            self.file.save()
        return [config.topic_name for config in configs]

    def delete(self, topic: str) -> bool:
        """Forgets a topic; returns whether it was known. On disk when this returns."""
        names.check_topic(topic)
        self._refuse_system(topic)
        config = self._topics.pop(topic, None)
        if config is None:
            return False
        self._bytes -= _text_bytes(config)
        self._next_version()
        self.file.save()
        return True

    def _check_update(self, config: TopicConfig) -> None:
        topic = config.topic_name
        names.check_topic(topic)
        self._refuse_system(topic)
        _check_queues(topic, config.read_queue_nums, config.write_queue_nums)
        if config.perm & ~ALL_PERM_BITS:
            raise Refused(ResponseCode.SYSTEM_ERROR, f"topic[{topic}]: perm {config.perm} is not 0 to 15")

    def _refuse_system(self, topic: str) -> None:
        if self.is_system(topic):
            raise Refused(ResponseCode.SYSTEM_ERROR, f"The topic[{topic}] is conflict with system topic.")

    def _check_room(self, configs: Collection[TopicConfig]) -> int:
        """By how many bytes the table grows with these, of which no two have one name."""
        replaced = [known for config in configs if (known := self._topics.get(config.topic_name)) is not None]
        if len(self._topics) + len(configs) - len(replaced) > MAX_TOPICS:
            raise Refused(ResponseCode.SYSTEM_ERROR, f"this broker has its limit of {MAX_TOPICS} topics")
        growth = sum(map(_text_bytes, configs)) - sum(map(_text_bytes, replaced))
        if growth > 0 and self._bytes + growth > MAX_TABLE_BYTES:
            remark = f"this broker's topics take their limit of {MAX_TABLE_BYTES} bytes in a registration"
            raise Refused(ResponseCode.SYSTEM_ERROR, remark)
        return growth

    # ---- what others decide

    def set_ordered(self, topics: Collection[str]) -> bool:
        """Gives the order flag to these topics and to no others (the name servers' ORDER_TOPIC_CONFIG keys).

        Returns whether anything changed.
        """
        changed = [config for config in self._topics.values() if config.order != (config.topic_name in topics)]
        for config in changed:
            order = not config.order
            self._topics[config.topic_name] = msgspec.structs.replace(config, order=order)
            log.info("topic_order_changed", topic=config.topic_name, order=order)
        if changed:
            self._next_version()
            self.file.changed()
        return bool(changed)

    def replace(self, body: TopicTableBody) -> bool:
        """On a slave: becomes the master's table. Returns whether it was another one; raises OSError."""
        if body.data_version == self.data_version:
            return False
        table = _sound(body, self._own)
        self._topics.clear()
        self._topics.update(table)
        self._bytes = sum(map(_text_bytes, table.values()))
        self.data_version = body.data_version
        self.file.save()
        return True

    # ---- the table as a whole

    def snapshot(self) -> TopicTableBody:
        """The table as it is now, for registrations, slaves and tools; shares its configs, which never change."""
        return TopicTableBody(data_version=self.data_version, topic_config_table=dict(self._topics))

    def encode(self, *, pretty: bool = True) -> bytes:
        """The text of topics.json, or the same without line breaks; equal to that of `snapshot`, but fast."""
        return self._texts.encode(self.data_version, "topicConfigTable", self._topics, pretty=pretty)

    def next_version(self) -> None:
        """Makes name servers take the table anew (the broker's own permission has changed)."""
        self._next_version()
        self.file.changed()

    def _next_version(self) -> None:
        version = self.data_version
        self.data_version = DataVersion(counter=version.counter + 1, timestamp=self._now_ms())


def _sound(body: TopicTableBody, own: Collection[str]) -> dict[str, TopicConfig]:
    """The topics of a file or of a master, without those whose names may not be; they are logged."""
    sound = {}
    for topic, config in body.topic_config_table.items():
        if topic in own or names.is_topic(topic):
            sound[topic] = config if config.topic_name == topic else msgspec.structs.replace(config, topic_name=topic)
        else:
            log.warning("topic_left_out", topic=topic, reason="not a topic's name")
    return sound


def _text_bytes(config: TopicConfig) -> int:
    """What the topic takes in a registration, at most."""
    attributes = sum(len(name) + len(value) + 20 for name, value in (config.attributes or {}).items())
    return 160 + 2 * len(config.topic_name) + attributes


def _check_queues(topic: str, read: int, write: int) -> None:
    if not (0 <= read <= MAX_QUEUES and 0 <= write <= MAX_QUEUES):
        raise Refused(
            ResponseCode.SYSTEM_ERROR,
            f"topic[{topic}]: {read} read and {write} write queues, allowed are 0 to {MAX_QUEUES}",
        )


def _own_topics(options: TopicOptions) -> Mapping[str, TopicConfig]:
    """The topics that every broker makes for itself (spec/remoting.md 3.7)."""
    cluster, broker = options.broker_cluster_name, options.broker_name
    own = [
        _topic(names.SELF_TEST_TOPIC, 1),
        _topic(names.BENCHMARK_TOPIC, BENCHMARK_QUEUES),
        _topic(cluster, CLUSTER_QUEUES, PERM_INHERIT | (READ_WRITE if options.cluster_topic_enable else 0)),
        _topic(broker, 1, PERM_INHERIT | (READ_WRITE if options.broker_topic_enable else 0)),
        _topic(names.OFFSET_MOVED_TOPIC, 1),
        _topic(names.SCHEDULE_TOPIC, SCHEDULE_QUEUES),
        _topic(f"{cluster}_REPLY_TOPIC", 1),
    ]
    if options.auto_create_topic_enable:
        queues = options.default_topic_queue_nums
        own.append(_topic(names.AUTO_CREATE_TOPIC, queues, READ_WRITE | PERM_INHERIT))
    if options.trace_topic_enable:
        own.append(_topic(options.msg_trace_topic_name, 1))
    return {config.topic_name: config for config in own}


def _topic(name: str, queues: int, perm: int = READ_WRITE) -> TopicConfig:
    return TopicConfig(topic_name=name, read_queue_nums=queues, write_queue_nums=queues, perm=perm)
