"""Messages that the broker itself puts into its log: copies of stored ones, for another topic or another time.

A delayed message that is due, a retry, a committed or repeated half message: each is a stored record with a few fields
changed. Nobody waits for the flush of such a copy unless its maker says so, hence `wait` is False.
"""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from gateway.broker import names
from gateway.broker.messageproperties import index_keys
from gateway.broker.topics import MAX_QUEUES
from protocol.message import MAX_PROPERTIES_BYTES, NewMessage, StoredMessage, format_properties, tags_code
from store.errors import ColdRead, MessageIllegal, StoreFull

if TYPE_CHECKING:
    from gateway.broker.state import Broker


def copy_message(
    record: StoredMessage,
    topic: str,
    queue_id: int,
    properties: Mapping[str, str] | None = None,
    *,
    text: bytes | None = None,
    sys_flag: int | None = None,
    reconsume_times: int | None = None,
    prepared_transaction_offset: int = 0,
) -> NewMessage:
    """The record as a new message; what is not given stays as it was, hosts and the time of birth among it.

    `text` is what the properties look like in a record, if that is known.
    """
    if properties is None:
        text, properties = record.properties_data, record.properties
    elif text is None:
        text = format_properties(properties).encode("utf-8", "replace")
    return NewMessage(
        topic=topic,
        queue_id=queue_id,
        flag=record.flag,
        sys_flag=record.sys_flag if sys_flag is None else sys_flag,
        born_timestamp=record.born_timestamp,
        born_host=record.born_host,
        store_host=record.store_host,
        body=record.body,
        properties=text,
        tags_code=tags_code(properties.get("TAGS")),
        keys=index_keys(properties),
        reconsume_times=record.reconsume_times if reconsume_times is None else reconsume_times,
        prepared_transaction_offset=prepared_transaction_offset,
        wait=False,
    )


def real_place(properties: Mapping[str, str]) -> tuple[str, int] | None:
    """Topic and queue of a message that was set aside; None if they cannot be any, as in a damaged or strange store."""
    topic, text = properties.get("REAL_TOPIC", ""), properties.get("REAL_QID", "")
    if not names.is_topic(topic) or topic in (names.HALF_TOPIC, names.OP_HALF_TOPIC, names.SCHEDULE_TOPIC):
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_QUEUES))):
        return None
    queue_id = int(text)
    return (topic, queue_id) if queue_id < MAX_QUEUES else None


def put(broker: "Broker", messages: list[NewMessage]) -> int:
    """Appends the messages, counts them and wakes who waits for them; returns the log's end. Raises StoreError.

    MessageIllegal if the properties of one have grown too long for a record, StoreFull while the store takes nothing.
    """
    writable, reason = broker.store.writable
    if not writable:
        raise StoreFull(reason)
    if any([len(message.properties) > MAX_PROPERTIES_BYTES for message in messages]):
        raise MessageIllegal(f"properties above {MAX_PROPERTIES_BYTES} bytes")
    end = broker.storage.append(messages)
    broker.metrics.messages_stored(messages)
    broker.stats.messages_stored(len(messages), sum([message.size for message in messages]))
    if broker.storage.consumers_see_appends:
        broker.pulls.arrived(messages)
    return end


async def read_message(broker: "Broker", physical_offset: int) -> StoredMessage | None:
    """The message whose record begins exactly there; waits for the disk only if it has to."""
    try:
        return broker.store.message_at(physical_offset, allow_cold=False)
    except ColdRead:
        return await broker.storage.read_cold(partial(broker.store.message_at, physical_offset))
