"""The C++ client through its Python package `rocketmq`, as a program of its own.

    cpp_python.py produce NAMESRV GROUP MESSAGES     sends the JSON list, prints one JSON result a message
    cpp_python.py consume NAMESRV GROUP TOPIC EXPRESSION HOW     prints `started`, then one JSON object a
    message, until SIGTERM; HOW: cluster, broadcast, orderly

It imports nothing of the tests: it runs with PYTHONPATH pointing at the package's own folder.
"""

import json
import queue
import signal
import sys
import threading
from typing import Any

from rocketmq import client  # type: ignore[import-not-found]  # only there when the tests run this program


def say(what: object) -> None:
    """One line to whoever started this program."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def made(fields: dict[str, Any]) -> Any:
    """The package's message; keys topic, body or size, tags, keys, delay, props."""
    message = client.Message(fields["topic"])
    message.set_body(fields["body"] if "body" in fields else "abcd" * (fields["size"] // 4))
    if "tags" in fields:
        message.set_tags(fields["tags"])
    if "keys" in fields:
        message.set_keys(fields["keys"])
    if "delay" in fields:
        message.set_delay_time_level(fields["delay"])
    for key, value in fields.get("props", {}).items():
        message.set_property(key, value)
    return message


def sent_async(producer: Any, message: Any) -> Any:
    """Sends asynchronously and waits for what comes back."""
    answers: queue.Queue[Any] = queue.Queue()
    producer.send_async(message, answers.put, answers.put)
    answer = answers.get(timeout=20)
    if isinstance(answer, Exception):
        raise answer
    return answer


def produce(namesrv: str, group: str, messages: str) -> None:
    """Sends, each message in its `mode`.

    Sync, async, oneway, orderly (`shard` selects the queue), batch (`batch`).
    """
    producer = client.Producer(group, max_message_size=4 << 20)  # 128 KiB unless said
    producer.set_namesrv_addr(namesrv)
    producer.start()
    for fields in json.loads(messages):
        mode = fields.get("mode", "sync")
        if mode == "batch":
            result = producer.send_batch([made(each) for each in fields["batch"]])
        elif mode == "async":
            result = sent_async(producer, made(fields))
        elif mode == "orderly":
            result = producer.send_orderly(made(fields), fields["shard"])
        elif mode == "oneway":
            result = producer.send_oneway(made(fields))
        else:
            result = producer.send_sync(made(fields))
        say({} if result is None else {"status": result.status.name, "id": result.msg_id, "offset": result.offset})
    producer.shutdown()


def consume(namesrv: str, group: str, topic: str, expression: str, how: str = "") -> None:
    """Prints what a push consumer is given until the process is asked to end."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    consumer = client.PushConsumer(group, orderly=how == "orderly")
    consumer.set_namesrv_addr(namesrv)
    lock = threading.Lock()

    def received(message: Any) -> None:
        with lock:
            say(
                {
                    "body": message.body.decode(),
                    "size": len(message.body),
                    "tags": (message.tags or b"").decode(),
                    "keys": (message.keys or b"").decode(),
                    "colour": (message.get_property("colour") or b"").decode(),
                    "topic": message.topic,
                    "id": message.id,
                    "queue": message.queue_id,
                    "offset": message.queue_offset,
                    "reconsumed": message.reconsume_times,
                }
            )

    consumer.subscribe(topic, received, expression)
    consumer.start()
    say("started")
    signal.sigwait([signal.SIGTERM])
    consumer.shutdown()
    say("stopped")


if __name__ == "__main__":
    if sys.argv[1] == "produce":
        produce(*sys.argv[2:])
    else:
        consume(*sys.argv[2:])
