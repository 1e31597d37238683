"""OFFSET_MOVED_EVENT: the record that a master keeps of a group that asked for an offset which is not there.

`mqadmin startMonitoring` and the like consume these. Message and order of its properties are those that
PullMessageProcessor writes. A client that asks without pause must not fill the log, so a queue of a group gets one
event in PAUSE_SECONDS; of MAX_REMEMBERED queues it is known when that was.
"""

from collections import OrderedDict
from typing import TYPE_CHECKING

import structlog
import trio

from gateway.broker.names import OFFSET_MOVED_TOPIC
from gateway.broker.ownmessages import put
from protocol.bodies import MessageQueue, OffsetMovedEvent
from protocol.message import BORN_HOST_V6, STORE_HOST_V6, NewMessage, format_properties, tags_code
from protocol.requests.pull import PullMessage
from store.errors import StoreError

if TYPE_CHECKING:
    from gateway.broker.state import Broker

log = structlog.get_logger(__name__)

PAUSE_SECONDS = 1.0
MAX_REMEMBERED = 1000


class OffsetMoved:
    """Writes the events of one broker, and knows when it wrote the last ones."""

    def __init__(self) -> None:
        self._noted: OrderedDict[tuple[str, str, int], float] = OrderedDict()

    def note(self, broker: "Broker", request: PullMessage, new_offset: int) -> None:
        """The group asked for `request.queue_offset` and was told `new_offset`."""
        if not self._is_due((request.consumer_group, request.topic, request.queue_id)):
            return
        group = request.consumer_group
        log.warning(
            "offset_moved",
            group=group,
            topic=request.topic,
            queue_id=request.queue_id,
            asked=request.queue_offset,
            told=new_offset,
        )
        queue = MessageQueue(broker_name=broker.options.broker_name, queue_id=request.queue_id, topic=request.topic)
        event = OffsetMovedEvent(
            consumer_group=group, message_queue=queue, offset_new=new_offset, offset_request=request.queue_offset
        )
        try:
            put(broker, [_message(broker, group, event.encode())])
        except StoreError as error:
            log.warning("offset_moved_not_stored", group=group, reason=str(error))

    def _is_due(self, key: tuple[str, str, int]) -> bool:
        now = trio.current_time()
        last = self._noted.pop(key, None)
        due = last is None or now - last >= PAUSE_SECONDS
        self._noted[key] = now if last is None or due else last
        if len(self._noted) > MAX_REMEMBERED:
            self._noted.popitem(last=False)
        return due


def _message(broker: "Broker", group: str, body: bytes) -> NewMessage:
    host = broker.incoming.store_host
    return NewMessage(
        topic=OFFSET_MOVED_TOPIC,
        queue_id=0,
        flag=0,
        sys_flag=BORN_HOST_V6 | STORE_HOST_V6 if len(host) > 8 else 0,
        born_timestamp=broker.now_ms(),
        born_host=host,
        store_host=host,
        body=body,
        properties=format_properties({"KEYS": group, "DELAY": "0", "TAGS": group}).encode(),
        tags_code=tags_code(group),
        keys=(group,),
        wait=False,
    )
