"""A broker's configuration, statistics and housekeeping."""

from typing import ClassVar

from protocol.codes import RequestCode
from protocol.header import PROPERTIES_BYTES, Header, Int64, request


@request(RequestCode.UPDATE_BROKER_CONFIG)
class UpdateBrokerConfig(Header):
    """Java properties text as a body."""

    max_body_bytes: ClassVar[int] = PROPERTIES_BYTES


class ConfigReply(Header):
    """`version` is the DataVersion of the configuration, as JSON."""

    version: str


@request(RequestCode.GET_BROKER_CONFIG, reply=ConfigReply)
class GetBrokerConfig(Header):
    """All settings as `key=value` lines."""


@request(RequestCode.GET_BROKER_RUNTIME_INFO)
class GetBrokerRuntimeInfo(Header):
    """Figures of the running broker, all as text."""


@request(RequestCode.VIEW_BROKER_STATS_DATA)
class ViewBrokerStatsData(Header):
    """The sums of one statistic (`TOPIC_PUT_NUMS`, ..) of one thing (topic, `topic@group`, cluster)."""

    stats_name: str
    stats_key: str


class FilterServerReply(Header):
    """Who the filter server works for."""

    broker_name: str
    broker_id: Int64


@request(RequestCode.REGISTER_FILTER_SERVER, reply=FilterServerReply)
class RegisterFilterServer(Header):
    """4.x: a process that filters for this broker; gone in 5.x."""

    filter_server_addr: str


@request(RequestCode.CLEAN_EXPIRED_CONSUMEQUEUE)
class CleanExpiredConsumequeue(Header):
    """Remove consume queue files that point below the commitlog's start."""


@request(RequestCode.DELETE_EXPIRED_COMMITLOG)
class DeleteExpiredCommitlog(Header):
    """Run the retention of the commitlog now."""


@request(RequestCode.GET_BROKER_HA_STATUS)
class GetBrokerHaStatus(Header):
    """5.x: who replicates how far."""


@request(RequestCode.RESET_MASTER_FLUSH_OFFSET)
class ResetMasterFlushOffset(Header):
    """5.x: tells a slave how far its master has flushed."""

    master_flush_offset: Int64
