"""StoreOptions: the keys of the official MessageStoreConfig that have a meaning here, with its defaults.

What the official package decides by a thread count, a lock kind or a memory map has no field here; such keys
are listed in `gateway.officialkeys`, so that an official file starts without complaint. Sizes are bytes and
times milliseconds unless the text of a key says otherwise.
"""

import enum
import os
import re
from dataclasses import dataclass

from protocol.options import INT_MAX, LONG_MAX, Form, Options, option

CONSUME_QUEUE_UNIT_SIZE = 20
DELAY_LEVELS = "1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h"


class FlushDiskType(enum.Enum):
    """What an acknowledged send has survived: the end of the process, or the loss of power."""

    ASYNC_FLUSH = "ASYNC_FLUSH"
    SYNC_FLUSH = "SYNC_FLUSH"


class BrokerRole(enum.Enum):
    """Whether this broker takes sends, and whether they wait for a slave."""

    ASYNC_MASTER = "ASYNC_MASTER"
    SYNC_MASTER = "SYNC_MASTER"
    SLAVE = "SLAVE"


_HOURS = re.compile(r"([01]?[0-9]|2[0-3])(;([01]?[0-9]|2[0-3]))*;?", re.ASCII)
_DELAYS = re.compile(r"[0-9]{1,9}[smhd]( +[0-9]{1,9}[smhd]){0,31}", re.ASCII)
_HOURS_FORM = Form("hours from 00 to 23 with ';' between them", lambda text: _HOURS.fullmatch(text) is not None)
_DELAYS_FORM = Form(
    "1 to 32 delays such as 10s, 5m, 2h or 1d with blanks between them",
    lambda text: _DELAYS.fullmatch(text) is not None,
)


@dataclass(kw_only=True)
class StoreOptions(Options):
    """How messages are kept. Directories are given as text and may start with `~`."""

    store_path_root_dir: str = option(
        "",
        "Directory of everything that is kept.",
        factory=lambda: os.path.join(os.path.expanduser("~"), "store"),
        important=True,
        fixed=True,
    )
    store_path_commit_log: str = option(
        "", "Directory of the commitlog; empty: storePathRootDir/commitlog.", important=True, fixed=True
    )

    # Sizes of files. The official sizes keep a directory exchangeable with the official broker.
    mapped_file_size_commit_log: int = option(1 << 30, "Size of a commitlog file.", ge=512, fixed=True)
    mapped_file_size_consume_queue: int = option(
        300_000 * CONSUME_QUEUE_UNIT_SIZE,
        "Size of a consume queue file; rounded up to whole units of 20.",
        ge=CONSUME_QUEUE_UNIT_SIZE,
        fixed=True,
    )
    max_hash_slot_num: int = option(5_000_000, "Hash slots of an index file.", ge=1, fixed=True)
    max_index_num: int = option(20_000_000, "Entries of an index file.", ge=2, fixed=True)

    # What a send promises.
    flush_disk_type: FlushDiskType = option(
        FlushDiskType.ASYNC_FLUSH,
        "When a send is acknowledged: after append or after fsync.",
        important=True,
        fixed=True,
    )
    broker_role: BrokerRole = option(
        BrokerRole.ASYNC_MASTER,
        "Master, master whose sends wait for a slave, or slave.",
        important=True,
    )
    max_message_size: int = option(4 << 20, "Largest body of a message.", ge=1)
    sync_flush_timeout: int = option(5000, "How long a send waits for its fsync.", ge=1)
    slave_timeout: int = option(3000, "How long a send waits for a slave's acknowledgement.", ge=1)
    in_sync_replicas: int = option(
        1,
        "Copies, the master's included, that an acknowledged send of a SYNC_MASTER has reached; at least 2.",
        ge=1,
    )

    # When written data goes to disk.
    flush_interval_commit_log: int = option(500, "Pause between flushes of the commitlog.", important=True)
    flush_commit_log_timed: bool = option(
        True, "Flush at that interval only; otherwise also as soon as enough pages are dirty.", important=True
    )
    flush_commit_log_least_pages: int = option(4, "Pages of 4 KiB that must be dirty for a flush.")
    flush_commit_log_thorough_interval: int = option(10_000, "After this time one dirty byte is enough.")
    flush_consume_queue_thorough_interval: int = option(60_000, "After this time one dirty byte is enough.")
    flush_delay_offset_interval: int = option(10_000, "Pause between writes of delayOffset.json.", ge=1)

    # What is deleted, and when.
    clean_resource_interval: int = option(10_000, "Pause between two rounds of cleaning.", ge=1)
    delete_when: str = option(
        "04", "Hours of the day in which expired files are deleted.", form=_HOURS_FORM, important=True
    )
    file_reserved_time: int = option(72, "Hours that a file is kept after its last write.", important=True)
    disk_max_used_space_ratio: int = option(
        75, "Disk use in percent above which expired files go at any hour; held between 10 and 95."
    )
    clean_file_forcibly_enable: bool = option(
        True, "Above 85 % of disk use delete the oldest files though they are not expired.", important=True
    )

    # Reading.
    max_transfer_bytes_on_message_in_memory: int = option(
        256 << 10, "Bytes of one pull answer from recent messages.", ge=1, important=True
    )
    max_transfer_count_on_message_in_memory: int = option(
        32, "Messages of one pull answer from recent messages.", ge=1, important=True
    )
    max_transfer_bytes_on_message_in_disk: int = option(
        64 << 10, "Bytes of one pull answer from old messages.", ge=1, important=True
    )
    max_transfer_count_on_message_in_disk: int = option(
        8, "Messages of one pull answer from old messages.", ge=1, important=True
    )
    access_message_in_memory_max_ratio: int = option(
        40,
        "Percent of the machine's memory that recent messages may take before they count as old.",
        le=100,
        important=True,
    )
    message_index_enable: bool = option(True, "Keep the key index.", important=True, fixed=True)
    max_msgs_num_batch: int = option(64, "Most messages of one query by key.", ge=1)
    default_query_max_num: int = option(32, "Messages of one query by key where the client names no number.", ge=1)
    check_crc_on_recover: bool = option(
        True, "Recovery compares the checksum of each body.", key="checkCRCOnRecover", fixed=True
    )

    # Delay and order.
    message_delay_level: str = option(
        DELAY_LEVELS, "What the delay levels 1, 2, … mean.", form=_DELAYS_FORM, fixed=True
    )

    # Master and slave.
    ha_listen_port: int = option(0, "Port for slaves; 0: listenPort + 1.", le=65_535, fixed=True)
    ha_master_address: str = option(
        "", "Slave: the master's host:port, instead of what name servers say.", important=True, fixed=True
    )
    ha_send_heartbeat_interval: int = option(5000, "Pause after which an idle connection to a slave says so.", ge=1)
    ha_housekeeping_interval: int = option(20_000, "Silence after which such a connection is closed.", ge=1)
    ha_transfer_batch_size: int = option(32 << 10, "Most bytes of one packet to a slave.", ge=1, le=INT_MAX - 12)
    ha_slave_fallbehind_max: int = option(
        256 << 20, "Bytes that a slave may lack and still count as there.", le=LONG_MAX
    )
    ha_sync_whole_log: bool = option(
        False,
        "A new slave takes the master's whole commitlog; otherwise, as the official one, its last file.",
    )
    offset_check_in_slave: bool = option(False, "Slave: correct offsets of pulls as a master does.")

    def __post_init__(self) -> None:
        self.store_path_root_dir = os.path.expanduser(self.store_path_root_dir)
        self.store_path_commit_log = os.path.expanduser(
            self.store_path_commit_log or os.path.join(self.store_path_root_dir, "commitlog")
        )
        size = self.mapped_file_size_consume_queue
        self.mapped_file_size_consume_queue = size + -size % CONSUME_QUEUE_UNIT_SIZE
        self.disk_max_used_space_ratio = min(max(self.disk_max_used_space_ratio, 10), 95)

    def may_become(self, attribute: str, value: object) -> bool:
        """A master may begin and cease to wait for its slaves; what is a slave is said at the start."""
        return attribute != "broker_role" or BrokerRole.SLAVE not in (self.broker_role, value)
