"""What tests say about lists of messages."""

from collections.abc import Iterable

from tests.interop.child import wait_until
from tests.interop.driver import ClientError, Json, Producer, PullConsumer


def bodies(messages: Iterable[Json]) -> list[str]:
    """The bodies in an order that does not depend on queues."""
    return sorted(message["body"] for message in messages)


def numbered(prefix: str, count: int) -> list[str]:
    """The bodies that send_many sends, in the order of `bodies`."""
    return sorted(f"{prefix}{number}" for number in range(count))


def read_queue(puller: PullConsumer, queue: Json, offset: int = 0) -> list[Json]:
    """All messages of a queue from that offset on, by an official consumer.

    `queue` may be a send result: then its message is waited for, which an official broker shows a moment after it has
    acknowledged it.
    """
    puller.queues(queue["topic"])
    if "offset" in queue:
        wait_until(lambda: puller.pull(queue, offset)["max"] > queue["offset"], "the message in its queue", 5)
    found: list[Json] = []
    while (result := puller.pull(queue, offset))["status"] == "FOUND":
        found += result["messages"]
        offset = result["next"]
    return found


def found_by_key(producer: Producer, topic: str, key: str) -> list[Json]:
    """The messages with that key; the client throws when there is none."""
    try:
        return producer.query(topic, key)
    except ClientError:
        return []
