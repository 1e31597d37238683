"""CONSUMER_SEND_MSG_BACK: what a consumer could not deal with comes again later, or goes to the dead letters.

The rules are official's (spec/remoting.md 5.4, spec/store.md 9), with two exceptions. A group's name becomes a topic's
name and so a directory, hence it is checked first. And the answer waits for the flush and the slave if sends do: once
it is given the consumer moves on, so the retry has to be as safe as the message was.
"""

import random

from gateway.broker import names
from gateway.broker.incoming import RESPECTS_MAX_RECONSUME
from gateway.broker.ownmessages import copy_message, put, read_message
from gateway.broker.state import Broker
from gateway.routing import Call, Refused, Routes
from protocol.bodies import SubscriptionGroupConfig
from protocol.codes import PERM_WRITE, ResponseCode
from protocol.message import NewMessage, StoredMessage
from protocol.requests.send import ConsumerSendMsgBack
from store.errors import MessageIllegal, StoreError
from store.options import BrokerRole

routes = Routes()

FIRST_LEVEL = 3
"""The delay level of a first retry whose consumer names none; the second gets the next one."""
DLQ_QUEUES = 1
UNIT_SUBSCRIPTION = 2


@routes.handle
async def consumer_send_msg_back(broker: Broker, call: Call[ConsumerSendMsgBack]) -> None:
    """Stores a copy of the message for the group's retry topic, or for its dead letters if it came too often."""
    header = call.header
    if broker.store_options.broker_role is BrokerRole.SLAVE:
        raise Refused(ResponseCode.SYSTEM_ERROR, "SERVICE_NOT_AVAILABLE")
    group = broker.groups.find(header.group)
    if not broker.options.broker_permission & PERM_WRITE:
        remark = f"the broker[{broker.options.broker_ip1}] sending message is forbidden"
        raise Refused(ResponseCode.NO_PERMISSION, remark)
    if group.retry_queue_nums <= 0:
        return
    retry_queue = _retry_queue(broker, header, group)
    record = await read_message(broker, header.offset)
    if record is None:
        raise Refused(ResponseCode.SYSTEM_ERROR, f"look message by offset failed, {header.offset}")
    message = _retry(broker, header, record, retry_queue, _limit(call, group))
    try:
        end = put(broker, [message])
    except MessageIllegal:
        raise Refused(ResponseCode.SYSTEM_ERROR, "PROPERTIES_SIZE_EXCEEDED") from None
    except StoreError as error:
        raise Refused(ResponseCode.SYSTEM_ERROR, f"SERVICE_NOT_AVAILABLE: {error}") from None
    broker.metrics.message_sent_back(record.properties.get("RETRY_TOPIC", record.topic), header.group)
    if broker.storage.promises_more_than_append:
        # Without a slave in reach the copy is as safe as the message, whose sender was told.
        code = await broker.storage.confirm(end)
        if code == ResponseCode.FLUSH_DISK_TIMEOUT:
            raise Refused(ResponseCode.SYSTEM_ERROR, code.name)


def _retry_queue(broker: Broker, header: ConsumerSendMsgBack, group: SubscriptionGroupConfig) -> tuple[str, int]:
    """A queue of the group's retry topic, which is made if it does not exist."""
    topic = names.retry_topic(header.group)
    sys_flag = UNIT_SUBSCRIPTION if header.unit_mode else 0
    config = broker.incoming.create_topic(topic, group.retry_queue_nums, topic_sys_flag=sys_flag)
    if not config.perm & PERM_WRITE:
        raise Refused(ResponseCode.NO_PERMISSION, f"the topic[{topic}] sending message is forbidden")
    return topic, random.randrange(group.retry_queue_nums)


def _limit(call: Call[ConsumerSendMsgBack], group: SubscriptionGroupConfig) -> int:
    """After how many retries a message is given up; newer clients say it themselves."""
    asked = call.header.max_reconsume_times
    return group.retry_max_times if asked is None or call.version < RESPECTS_MAX_RECONSUME else asked


def _retry(
    broker: Broker, header: ConsumerSendMsgBack, record: StoredMessage, retry_queue: tuple[str, int], limit: int
) -> NewMessage:
    properties = record.properties
    origin = properties.setdefault("RETRY_TOPIC", record.topic)
    properties.setdefault("ORIGIN_MESSAGE_ID", record.message_id)
    if record.reconsume_times >= limit or header.delay_level < 0:
        topic, queue_id = names.dead_letter_topic(header.group), 0
        broker.incoming.create_topic(topic, DLQ_QUEUES)
        broker.metrics.sent_to_dead_letters(origin, header.group)
        properties["DELAY"] = "0"
    else:
        level = header.delay_level or FIRST_LEVEL + record.reconsume_times
        level = min(level, broker.delays.levels.highest)
        topic, queue_id = broker.delays.schedule(properties, *retry_queue, level)
    return copy_message(record, topic, queue_id, properties, reconsume_times=record.reconsume_times + 1)
