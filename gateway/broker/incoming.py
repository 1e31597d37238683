"""From a send request to the messages that the store takes: official's checks, in official's order.

The rules are those of SendMessageProcessor (spec/remoting.md 5.4): who may send where, which queue, what the broker
adds to the properties (CLUSTER) and drops from them (WAIT), what becomes of retries that came too often, and what is
set aside first: delayed messages and the half messages of transactions.
"""

import random
from collections.abc import Callable

import msgspec

from gateway.addresses import ip_of
from gateway.broker import names
from gateway.broker.delay import DelayTable
from gateway.broker.groups import GroupTable
from gateway.broker.messageproperties import UsualProperties, index_keys, properties_to_store
from gateway.broker.topics import TopicTable
from gateway.config import BrokerOptions
from gateway.connection import Connection
from gateway.routing import Refused
from protocol.bodies import TopicConfig
from protocol.codes import PERM_WRITE, ResponseCode
from protocol.command import Command
from protocol.message import (
    BORN_HOST_V6,
    HOST_FLAGS,
    MAX_PROPERTIES_BYTES,
    MIN_RECORD_BYTES,
    MULTI_TAGS,
    STORE_HOST_V6,
    TRANSACTION_COMMIT,
    TRANSACTION_MASK,
    TRANSACTION_NONE,
    BatchItem,
    NewMessage,
    decode_batch,
    format_properties,
    pack_host,
    parse_properties,
    tags_code,
)
from protocol.requests.send import SendMessage, SendMessageV2
from store.options import BrokerRole, StoreOptions

SendHeader = SendMessage | SendMessageV2

RESPECTS_MAX_RECONSUME = 121
"""Clients from V3_4_9 on say themselves how often a message may be retried."""
ILLEGAL_MESSAGE = (
    "the message is illegal, maybe msg body or properties length not matched. "
    "msg body length limit {body} bytes, msg properties length limit 32767 bytes."
)

TIMER_PROPERTIES = frozenset({"TIMER_DELAY_SEC", "TIMER_DELAY_MS", "TIMER_DELIVER_MS"})

_NO_HOST_FLAGS = ~HOST_FLAGS

BATCH_GROWTH = 4
"""How much more than maxMessageSize a batch may take in the log. A request of 22 bytes per message would otherwise
become ten times as much, or, as each message gets the request's properties too, a thousand times."""


class IncomingMessages:
    """Accepts or refuses what producers send; knows the tables, touches neither store nor network."""

    def __init__(
        self,
        options: BrokerOptions,
        store_options: StoreOptions,
        topics: TopicTable,
        groups: GroupTable,
        now_ms: Callable[[], int],
        topic_created: Callable[[str], None],
        delays: DelayTable,
    ) -> None:
        self._options = options
        self._topics = topics
        self._groups = groups
        self._now_ms = now_ms
        self._topic_created = topic_created
        self._delays = delays
        self._is_slave = store_options.broker_role is BrokerRole.SLAVE
        self._store_options = store_options
        self._cluster = options.broker_cluster_name
        self._usual_properties = UsualProperties(self._cluster)
        self.store_host = pack_host(ip_of(options.broker_ip1), options.listen_port)
        self.message_id = (self.store_host.hex().upper() + "%016X").__mod__
        """The offset message id of the message at a commitlog offset."""
        self._store_host_flag = STORE_HOST_V6 if len(self.store_host) > 8 else 0
        self.own_host_flags = self._store_host_flag | BORN_HOST_V6 if self._store_host_flag else 0
        """The sysFlag of a message that was born here."""

    @property
    def _max_body(self) -> int:
        return self._store_options.max_message_size

    def accept(self, header: SendHeader, command: Command, connection: Connection) -> NewMessage:
        """The message of one plain send; raises Refused."""
        topic = header.topic
        config = self._topics.get(topic)
        if config is None or self._is_slave or topic[0] == "%" or topic in names.SEND_FORBIDDEN_TOPICS:
            config = self._check(header, config)
        topic = config.topic_name  # one text for all messages of a topic: what comes later hashes and compares it
        queue_id = header.queue_id
        if not 0 <= queue_id < config.write_queue_nums:
            queue_id = self._choose_queue(queue_id, config)
        body = command.body
        properties: dict[str, str] | None = None
        given = header.properties or ""
        usual = None if topic[0] == "%" else self._usual_properties.stored(given)
        if usual is None:
            properties, wait = properties_to_store(given, self._cluster)
            text = format_properties(properties).encode()
            code, keys = tags_code(properties.get("TAGS")), index_keys(properties)
        else:
            text, code, keys, wait = usual
        if len(body) > self._store_options.max_message_size or len(text) > MAX_PROPERTIES_BYTES:
            raise Refused(ResponseCode.MESSAGE_ILLEGAL, ILLEGAL_MESSAGE.format(body=self._max_body))
        sys_flag = header.sys_flag & _NO_HOST_FLAGS | self._store_host_flag
        if len(connection.peer_host) > 8:
            sys_flag |= BORN_HOST_V6
        if config.topic_filter_type == "MULTI_TAG":
            sys_flag |= MULTI_TAGS
        message = NewMessage(
            topic,
            queue_id,
            header.flag,
            sys_flag,
            header.born_timestamp,
            connection.peer_host,
            self.store_host,
            body,
            text,
            code,
            keys,
            header.reconsume_times or 0,
            0,
            wait,
        )
        if properties is None:
            return message
        self._refuse_timer(properties)
        if topic[0] == "%" and topic.startswith(names.RETRY_PREFIX):
            self._divert_exhausted(header, command, message, properties)
        if "DELAY" in properties or "TRAN_MSG" in properties:
            return self._set_aside(message, properties)
        return message

    def accept_batch(self, header: SendHeader, command: Command, connection: Connection) -> list[NewMessage]:
        """The messages of a batch, which share the request's topic, queue and times; raises Refused."""
        if len(command.body) > self._max_body:
            raise Refused(ResponseCode.MESSAGE_ILLEGAL, ILLEGAL_MESSAGE.format(body=self._max_body))
        items = decode_batch(command.body)
        envelope = self.accept(header, Command(command.code), connection)
        if envelope.topic[: len(names.RETRY_PREFIX)] == names.RETRY_PREFIX:
            raise Refused(ResponseCode.MESSAGE_ILLEGAL, "a batch cannot be sent to a retry topic")
        if type(envelope) is not NewMessage or envelope.sys_flag & TRANSACTION_MASK:
            raise Refused(ResponseCode.MESSAGE_ILLEGAL, "a batch can be neither delayed nor part of a transaction")
        stored = len(command.body) + len(items) * (MIN_RECORD_BYTES + len(envelope.topic) + len(envelope.properties))
        limit = BATCH_GROWTH * self._max_body
        if stored > limit:
            remark = f"the {len(items)} messages of the batch take {stored} bytes in the log, the limit is {limit}"
            raise Refused(ResponseCode.MESSAGE_ILLEGAL, remark)
        return [self._batch_item(envelope, item) for item in items]

    def _batch_item(self, envelope: NewMessage, item: BatchItem) -> NewMessage:
        text = item.properties
        if envelope.properties:
            separator = b"" if not text or text.endswith(b"\x02") else b"\x02"
            text = text + separator + envelope.properties
        if len(text) > MAX_PROPERTIES_BYTES:
            raise Refused(ResponseCode.MESSAGE_ILLEGAL, ILLEGAL_MESSAGE.format(body=self._max_body))
        try:
            properties = parse_properties(text.decode())
        except UnicodeDecodeError:
            raise Refused(
                ResponseCode.MESSAGE_ILLEGAL, "the properties of a message of the batch are not UTF-8"
            ) from None
        if "DELAY" in properties and self._delays.level(properties) > 0:
            raise Refused(ResponseCode.MESSAGE_ILLEGAL, "a message of a batch cannot be delayed")
        self._refuse_timer(properties)
        tags = properties.get("TAGS")
        return NewMessage(
            envelope.topic,
            envelope.queue_id,
            item.flag,
            envelope.sys_flag,
            envelope.born_timestamp,
            envelope.born_host,
            envelope.store_host,
            item.body,
            text,
            tags_code(tags),
            index_keys(properties),
            envelope.reconsume_times,
            0,
            envelope.wait,
        )

    # ---- checks

    def _check(self, header: SendHeader, config: TopicConfig | None) -> TopicConfig:
        """Everything that a send to a known ordinary topic of a master need not be asked."""
        if self._is_slave:
            raise Refused(
                ResponseCode.SERVICE_NOT_AVAILABLE,
                "service not available now: this broker is a slave, send to its master",
            )
        topic = header.topic
        names.check_topic(topic)
        if topic in names.SEND_FORBIDDEN_TOPICS:
            raise Refused(ResponseCode.NO_PERMISSION, f"Sending message to topic[{topic}] is forbidden.")
        if config is None:
            config = self._topics.create_on_send(topic, header.default_topic, header.default_topic_queue_nums)
            self._topic_created(topic)
        return config

    def _choose_queue(self, queue_id: int, config: TopicConfig) -> int:
        if queue_id < 0:
            return random.randrange(max(config.write_queue_nums, 1))
        if queue_id >= max(config.read_queue_nums, config.write_queue_nums):
            raise Refused(
                ResponseCode.SYSTEM_ERROR,
                f"request queueId[{queue_id}] is illegal, {config.topic_name} has "
                f"{config.read_queue_nums} read and {config.write_queue_nums} write queues",
            )
        return queue_id

    @property
    def is_guarded(self) -> bool:
        """Whether sends have to pass `check_writable` at present."""
        options = self._options
        start = options.start_accept_send_request_time_stamp
        return not options.broker_permission & PERM_WRITE or (start > 0 and start > self._now_ms())

    def check_writable(self, topic: str) -> None:
        """Refuses while the whole broker takes no writes: before its start time, and for ordered topics without W."""
        options = self._options
        if options.start_accept_send_request_time_stamp > self._now_ms():
            raise Refused(ResponseCode.SYSTEM_ERROR, "broker unable to service, until the start time that was set")
        if not options.broker_permission & PERM_WRITE and self._topics.is_ordered(topic):
            raise Refused(ResponseCode.NO_PERMISSION, f"the broker[{options.broker_ip1}] sending message is forbidden")

    def _divert_exhausted(
        self, header: SendHeader, command: Command, message: NewMessage, properties: dict[str, str]
    ) -> None:
        """A retry that came too often goes to the group's dead letter topic instead, without delay."""
        group = message.topic[len(names.RETRY_PREFIX) :]
        limit = self._groups.find(group).retry_max_times
        if command.version >= RESPECTS_MAX_RECONSUME and header.max_reconsume_times is not None:
            limit = header.max_reconsume_times
        if message.reconsume_times >= limit:
            message.topic = names.dead_letter_topic(group)
            message.queue_id = 0
            properties["DELAY"] = "0"
            message.properties = self._encoded(properties)
            self.create_topic(message.topic, 1)

    # ---- what consumers do not see yet

    def _refuse_timer(self, properties: dict[str, str]) -> None:
        """Refuses what a client of 5.x wants to have delivered at a time of its own, in the words of official 5.x.

        A level counts more, and a time that has come (TIMER_OUT_MS) no more (5.x HookUtils.checkIfTimerMessage).
        """
        if TIMER_PROPERTIES.isdisjoint(properties) or "TIMER_OUT_MS" in properties:
            return
        if self._delays.level(properties) > 0:
            return
        remark = "accurate timer message is not enabled, timerWheelEnable is false; use a delay level"
        raise Refused(ResponseCode.SYSTEM_ERROR, remark)

    def _set_aside(self, message: NewMessage, properties: dict[str, str]) -> NewMessage:
        """A delayed message waits in the schedule topic, a half message in its own; others stay what they are."""
        level = self._delays.level(properties)
        asked_queue_id = message.queue_id
        is_retry = message.reconsume_times > 0  # clients below 4.6.1 leave TRAN_MSG in what they send back
        if properties.get("TRAN_MSG", "").lower() == "true" and not is_retry:
            if self._options.reject_transaction_message:
                raise Refused(
                    ResponseCode.NO_PERMISSION,
                    f"the broker[{self._options.broker_ip1}] sending transaction message is forbidden",
                )
            properties["REAL_TOPIC"] = message.topic
            properties["REAL_QID"] = str(message.queue_id)
            message.topic, message.queue_id = names.HALF_TOPIC, 0
            message.sys_flag &= ~TRANSACTION_MASK
            self.create_topic(names.HALF_TOPIC, 1)
        elif level > 0 and message.sys_flag & TRANSACTION_MASK in (TRANSACTION_NONE, TRANSACTION_COMMIT):
            message.topic, message.queue_id = self._delays.schedule(properties, message.topic, message.queue_id, level)
        else:
            return message
        message.properties = self._encoded(properties)
        return set_aside(*msgspec.structs.astuple(message), asked_queue_id)

    def create_topic(self, topic: str, queue_nums: int, *, topic_sys_flag: int = 0) -> TopicConfig:
        """A topic that the broker itself needs; made and registered if it does not exist."""
        config, created = self._topics.create_if_absent(topic, queue_nums, topic_sys_flag=topic_sys_flag)
        if created:
            self._topic_created(topic)
        return config

    def _encoded(self, properties: dict[str, str]) -> bytes:
        text = format_properties(properties).encode()
        if len(text) > MAX_PROPERTIES_BYTES:
            raise Refused(ResponseCode.MESSAGE_ILLEGAL, ILLEGAL_MESSAGE.format(body=self._max_body))
        return text


class SetAsideMessage(NewMessage, gc=False):
    """A message that is not stored where its sender wanted it, but waits elsewhere for its time or its commit."""

    asked_queue_id: int = 0


set_aside: Callable[..., SetAsideMessage] = SetAsideMessage
"""Takes the fields of a NewMessage in their order, then `asked_queue_id`."""


def asked_queue_id(message: NewMessage) -> int:
    """The queue that the answer to a send names: that of the message's own topic."""
    return message.asked_queue_id if isinstance(message, SetAsideMessage) else message.queue_id
