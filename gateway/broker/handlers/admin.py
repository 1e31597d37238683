"""What several handlers for tools share: who may change things, how queues are shown, and how many are deleted."""

from collections.abc import Callable
from pathlib import Path

import trio

from gateway.broker.state import Broker
from gateway.routing import Refused
from protocol.bodies import DelayOffsetBody, MessageQueue, TopicConfig
from protocol.codes import ResponseCode
from store.jsonfile import load_json
from store.options import BrokerRole

QUEUES_IN_SLICE = 32
"""So many queues are deleted without a pause: about 10 ms, most of it the file system's."""


def refuse_on_slave(broker: Broker) -> None:
    """A slave's topics and groups are its master's."""
    if broker.store_options.broker_role is BrokerRole.SLAVE:
        remark = "Can't modify topic or subscription group from slave broker, please execute it from master broker."
        raise Refused(ResponseCode.SYSTEM_ERROR, remark)


def known_topic(broker: Broker, topic: str) -> TopicConfig:
    """The topic's settings; refuses an unknown one in the words that tools print."""
    config = broker.topics.get(topic)
    if config is None:
        raise Refused(ResponseCode.TOPIC_NOT_EXIST, f"topic[{topic}] not exist")
    return config


def queues_of(broker: Broker, config: TopicConfig) -> list[MessageQueue]:
    """All queues of a topic that can be written or read."""
    count = max(config.read_queue_nums, config.write_queue_nums)
    name = broker.options.broker_name
    return [MessageQueue(broker_name=name, queue_id=number, topic=config.topic_name) for number in range(count)]


def delivered_offsets(broker: Broker) -> DelayOffsetBody:
    """How far each delay level is delivered as the file says it, which is never ahead of what is safe."""
    path = Path(broker.store_options.store_path_root_dir) / "config" / "delayOffset.json"
    return load_json(path, DelayOffsetBody.decode) or DelayOffsetBody()


async def delete_in_slices(delete: Callable[[int], int]) -> int:
    """Calls `delete(limit)`, which returns how many queues it deleted, until none is left; returns how many it were.

    Others have their turn in between. Whoever asked may go away meanwhile: what was begun is done to its end.
    """
    count = 0
    while True:
        deleted = delete(QUEUES_IN_SLICE)
        count += deleted
        if deleted < QUEUES_IN_SLICE:
            return count
        await trio.lowlevel.cancel_shielded_checkpoint()
