"""NamesrvOptions and BrokerOptions: what can be configured, apart from the store.

How a file, the environment and a command line become them is in `gateway.settings`. Own keys, which the official
package does not have, say so in their text.
"""

import os
import re
import socket
from dataclasses import dataclass, field

from gateway.addresses import local_address, parse_addresses
from protocol.options import LONG_MAX, Form, Options, option
from store.options import StoreOptions


class ConfigError(Exception):
    """The configuration cannot be used; `str()` is one line that names the file and the key."""


def _is_namesrv_list(text: str) -> bool:
    try:
        parse_addresses(text)
    except ValueError:
        return False
    return True


_NAMESRV_LIST = Form("host:port with ';' between several", _is_namesrv_list)
_HOST_TEXT = re.compile(r"[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]{0,40}", re.ASCII)
_HOST = Form("a host name or an IP address without a port", lambda text: _HOST_TEXT.fullmatch(text) is not None)
_NAME_TEXT = re.compile(r"[^/\\\x00-\x1f\x7f]{1,127}")
_NAME = Form("1 to 127 characters without slashes", lambda text: _NAME_TEXT.fullmatch(text) is not None)


@dataclass(kw_only=True)
class ServerOptions(Options):
    """Keys that both servers have: NettyServerConfig's, and what the official package sets elsewhere."""

    without_effect: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Official keys that were given and are not used here, with their text."""

    rocketmq_home: str = option(
        "", "Directory of conf/.", factory=lambda: os.environ.get("ROCKETMQ_HOME", ""), fixed=True
    )
    bind_address: str = option("0.0.0.0", "Local address of the listeners.", form=_HOST, fixed=True)
    server_channel_max_idle_time_seconds: int = option(
        120, "Seconds without a byte after which a connection is closed.", ge=1, fixed=True
    )
    server_socket_backlog: int = option(1024, "Connections that wait for being accepted.", ge=1, le=65_535, fixed=True)
    log_dir: str = option(
        "",
        "Directory of the log files; empty: none. Not an official key.",
        factory=lambda: os.path.join(os.path.expanduser("~"), "logs", "rocketmqlogs"),
        fixed=True,
    )

    def __post_init__(self) -> None:
        self.log_dir = os.path.expanduser(self.log_dir)


@dataclass(kw_only=True)
class NamesrvOptions(ServerOptions):
    """The name server's keys: NamesrvConfig."""

    listen_port: int = option(9876, "Port; 0: any free one.", le=65_535, important=True, fixed=True)
    kv_config_path: str = option(
        "",
        "File of the KV configuration.",
        factory=lambda: os.path.join(os.path.expanduser("~"), "namesrv", "kvConfig.json"),
        fixed=True,
    )
    config_store_path: str = option(
        "",
        "File that takes changes made by wire, where no file was given.",
        factory=lambda: os.path.join(os.path.expanduser("~"), "namesrv", "namesrv.properties"),
        fixed=True,
    )
    product_env_name: str = option("center", "Name of the environment, for tools.")
    cluster_test: bool = option(False, "Answer for unknown topics as a test cluster does: no effect here.", fixed=True)
    order_message_enable: bool = option(False, "Hand out the queue order configuration with routes.")
    scan_not_active_broker_interval: int = option(5000, "Pause between searches for silent brokers, in ms.", ge=10)
    metrics_port: int = option(
        5556, "Port of /metrics; 0: none. Not an official key.", le=65_535, important=True, fixed=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.kv_config_path = os.path.expanduser(self.kv_config_path)
        self.config_store_path = os.path.expanduser(self.config_store_path)


@dataclass(kw_only=True)
class BrokerOptions(ServerOptions):
    """The broker's keys: BrokerConfig. Times are milliseconds."""

    # Who it is and where.
    namesrv_addr: str = option("", "Name servers.", form=_NAMESRV_LIST, important=True, fixed=True)
    broker_ip1: str = option(
        "",
        "Address that clients are told.",
        factory=local_address,
        key="brokerIP1",
        form=_HOST,
        important=True,
        fixed=True,
    )
    broker_ip2: str = option(
        "", "Address that slaves are told.", factory=local_address, key="brokerIP2", form=_HOST, fixed=True
    )
    listen_port: int = option(
        10911,
        "Port; the fast port is 2 lower, the port for slaves 1 higher. 0: any free one.",
        le=65_534,
        important=True,
        fixed=True,
    )
    broker_name: str = option(
        "",
        "Name that a master shares with its slaves.",
        factory=socket.gethostname,
        form=_NAME,
        important=True,
        fixed=True,
    )
    broker_cluster_name: str = option("DefaultCluster", "Name of the cluster.", form=_NAME, important=True, fixed=True)
    broker_id: int = option(0, "0: master; above: slave.", ge=-LONG_MAX, le=LONG_MAX, important=True, fixed=True)
    broker_permission: int = option(6, "Permission of the whole broker: 4 read, 2 write.", le=7)
    region_id: str = option("DefaultRegion", "Region that clients are told.", fixed=True)

    # Name servers.
    register_name_server_period: int = option(30_000, "Pause between registrations; held between 10,000 and 60,000.")
    register_broker_timeout_mills: int = option(6000, "How long a registration may take.", ge=1)
    compressed_register: bool = option(False, "Compress the topic table of a registration.")

    # Topics and groups.
    default_topic_queue_nums: int = option(8, "Queues of TBW102 and so of created topics.", ge=1, le=65_535)
    auto_create_topic_enable: bool = option(True, "Create a topic with its first send.", important=True)
    auto_create_subscription_group: bool = option(True, "Create a group with its first consumer.", important=True)
    cluster_topic_enable: bool = option(True, "The topic named like the cluster may be read and written.", fixed=True)
    broker_topic_enable: bool = option(True, "The topic named like the broker may be read and written.", fixed=True)
    trace_topic_enable: bool = option(False, "Create the trace topic.", important=True, fixed=True)
    msg_trace_topic_name: str = option("RMQ_SYS_TRACE_TOPIC", "Trace topic.", form=_NAME, important=True, fixed=True)
    trace_on: bool = option(True, "Clients are told that traces may be sent.", fixed=True)
    flush_consumer_offset_interval: int = option(5000, "Pause between writes of the consumer offsets.", ge=10)

    # Sends and pulls.
    start_accept_send_request_time_stamp: int = option(0, "Unix time before which sends are refused.", le=LONG_MAX)
    long_polling_enable: bool = option(True, "Park a pull that found nothing as long as its client allows.")
    short_polling_time_mills: int = option(1000, "How long it is parked otherwise.", ge=1)
    notify_consumer_ids_changed_enable: bool = option(True, "Tell the members of a group when it changes.")
    slave_read_enable: bool = option(False, "Send consumers of old messages to a slave.")
    store_reply_message_enable: bool = option(True, "Store replies of request-reply calls.")

    # Transactions.
    reject_transaction_message: bool = option(False, "Refuse half messages.", important=True)
    transaction_time_out: int = option(6000, "Age at which a half message is checked.", important=True)
    transaction_check_max: int = option(15, "Checks after which it is given up.", ge=1, important=True)
    transaction_check_interval: int = option(60_000, "Pause between two rounds of checks.", ge=1, important=True)

    acl_enable: bool = option(False, "Check access keys by conf/plain_acl.yml.", important=True, fixed=True)
    metrics_port: int = option(
        5557, "Port of /metrics; 0: none. Not an official key.", le=65_535, important=True, fixed=True
    )


def broker_properties(options: BrokerOptions, store_options: StoreOptions) -> dict[str, str]:
    """What GET_BROKER_CONFIG answers: every key, those without effect included, because tools expect them."""
    from gateway import officialkeys

    unused = officialkeys.BROKER | officialkeys.SERVER | options.without_effect
    return options.to_properties() | store_options.to_properties() | unused


def namesrv_properties(options: NamesrvOptions) -> dict[str, str]:
    """What GET_NAMESRV_CONFIG answers."""
    from gateway import officialkeys

    return options.to_properties() | officialkeys.SERVER | options.without_effect
