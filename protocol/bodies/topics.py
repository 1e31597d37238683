"""Topics: their settings, the table of all of them, lists of names, and how far their queues reach."""

from enum import StrEnum

from msgspec import field
from msgspec.structs import replace

from protocol.bodies.base import Body, MessageQueue, Value
from protocol.header import Int32, Int64


class TopicFilterType(StrEnum):
    """Whether messages of the topic have one tag or several."""

    SINGLE_TAG = "SINGLE_TAG"
    MULTI_TAG = "MULTI_TAG"


class DataVersion(Value, frozen=True, omit_defaults=True):
    """The version of a table; equal versions mean equal tables. `state_version` belongs to 5.x and is 0 elsewhere."""

    counter: Int64
    timestamp: Int64
    state_version: Int64 = 0


NO_VERSION = DataVersion(counter=0, timestamp=0)


class TableVersion(Body):
    """As much of a table as tells whether the rest is known."""

    data_version: DataVersion = NO_VERSION


class TopicConfig(Body):
    """One topic as a broker has it; `perm` in PERM_* bits. The defaults are those of the Java class."""

    topic_name: str = ""
    read_queue_nums: Int32 = 16
    write_queue_nums: Int32 = 16
    perm: Int32 = 6
    topic_filter_type: TopicFilterType = TopicFilterType.SINGLE_TAG
    topic_sys_flag: Int32 = 0
    order: bool = False
    attributes: dict[str, str] | None = None


class TopicTableBody(Body):
    """All topics of a broker: TopicConfigSerializeWrapper, also the content of `config/topics.json`."""

    data_version: DataVersion = NO_VERSION
    topic_config_table: dict[str, TopicConfig] = field(default_factory=dict)

    def with_permission(self, perm: int) -> "TopicTableBody":
        """The same table with one permission for all topics, for a broker that is closed for reading or writing."""
        table = {topic: replace(config, perm=perm) for topic, config in self.topic_config_table.items()}
        return TopicTableBody(data_version=self.data_version, topic_config_table=table)


class TopicConfigList(Body):
    """Topics to create (CreateTopicListRequestBody of 5.x)."""

    topic_config_list: list[TopicConfig]


class TopicList(Body):
    """Names; `broker_addr` is whom to ask for more."""

    topic_list: list[str] = field(default_factory=list)
    broker_addr: str | None = None


class GroupList(Body):
    """Names of consumer groups."""

    group_list: list[str] = field(default_factory=list)


class TopicOffset(Body):
    """The reach of one queue: first offset, next offset, store time (ms) of the last message or 0."""

    last_update_timestamp: Int64 = 0
    max_offset: Int64 = 0
    min_offset: Int64 = 0


class TopicStatsTable(Body):
    """The reach of a topic's queues."""

    offset_table: dict[MessageQueue, TopicOffset] = field(default_factory=dict)
