"""PULL_MESSAGE and LITE_PULL_MESSAGE: reading a queue, waiting for its next message, and where to read next.

The order of the checks and the meaning of each code are those of PullMessageProcessor (spec/remoting.md 5.4,
spec/store.md 8). A pull that finds nothing and may wait is parked; a pull whose data is not in memory reads in a
thread.

`suggestWhichBrokerId` is where the consumer's next pull of this queue goes. A master says 0 unless slaveReadEnable
lets it send a consumer whose last message was written longer ago than memory reaches
(accessMessageInMemoryMaxRatio) to the slave that its group names; the group's other number brings it back when it
has caught up. A slave judges by the same rule with its own log and memory, and sends whoever asks for an offset that
it has not got back to the master, which may have it.
"""

from functools import partial
from time import perf_counter

import trio

from gateway.broker.pulls import ParkedPull
from gateway.broker.state import Broker
from gateway.broker.subscriptions import Matches, is_tag_type, subscription_of_request, tag_matcher
from gateway.routing import LATER, Call, Later, Refused, Reply, Routes
from protocol.bodies import MessageModel, SubscriptionData, SubscriptionGroupConfig
from protocol.codes import PERM_READ, PULL_COMMIT_OFFSET, PULL_SUBSCRIPTION, PULL_SUSPEND, ResponseCode
from protocol.requests.pull import LitePullMessage, PullMessage, PullMessageReply
from store.engine import ColdRead, GetResult, GetStatus
from store.options import BrokerRole

routes = Routes()

ALONE_PAUSE_MS = 1000

_CODES = {
    GetStatus.FOUND: ResponseCode.SUCCESS,
    GetStatus.NO_MATCHED_MESSAGE: ResponseCode.PULL_RETRY_IMMEDIATELY,
    GetStatus.MESSAGE_WAS_REMOVING: ResponseCode.PULL_RETRY_IMMEDIATELY,
    GetStatus.OFFSET_FOUND_NULL: ResponseCode.PULL_NOT_FOUND,
    GetStatus.OFFSET_OVERFLOW_ONE: ResponseCode.PULL_NOT_FOUND,
    GetStatus.OFFSET_OVERFLOW_BADLY: ResponseCode.PULL_OFFSET_MOVED,
    GetStatus.OFFSET_TOO_SMALL: ResponseCode.PULL_OFFSET_MOVED,
    GetStatus.NO_MATCHED_LOGIC_QUEUE: ResponseCode.PULL_OFFSET_MOVED,
    GetStatus.NO_MESSAGE_IN_QUEUE: ResponseCode.PULL_OFFSET_MOVED,
}
_EMPTY_QUEUE = (GetStatus.NO_MATCHED_LOGIC_QUEUE, GetStatus.NO_MESSAGE_IN_QUEUE)
_AFTER_SCAN = (GetStatus.FOUND, GetStatus.NO_MATCHED_MESSAGE, GetStatus.MESSAGE_WAS_REMOVING)
_CORRECTED = frozenset(GetStatus) - frozenset(_AFTER_SCAN)  # where the next offset is not the end of a scan


@routes.handle
def pull_message(broker: Broker, call: Call[PullMessage]) -> Reply | Later:
    """Answers with messages, or waits for one."""
    return _first_pass(broker, call)


@routes.handle
def lite_pull_message(broker: Broker, call: Call[LitePullMessage]) -> Reply | Later:
    """What lite pull consumers of 5.x send; the same as PULL_MESSAGE."""
    return _first_pass(broker, call)


def _first_pass(broker: Broker, call: Call[PullMessage] | Call[LitePullMessage]) -> Reply | Later:
    request = call.header
    group = _check(broker, call)
    matches = tag_matcher(_subscription(broker, request, group))
    is_slave = broker.store_options.broker_role is BrokerRole.SLAVE
    if request.sys_flag & PULL_COMMIT_OFFSET and not is_slave:
        ceiling = broker.store.max_offset(request.topic, request.queue_id)
        broker.offsets.commit(
            request.consumer_group, request.topic, request.queue_id, request.commit_offset, ceiling=ceiling
        )
    pull = Pull(broker, call, group, matches)
    return pull.run(may_wait=bool(request.sys_flag & PULL_SUSPEND))


class Pull:
    """One pull that has passed the checks; `run` may happen a second time, after it was parked."""

    __slots__ = ("_broker", "_call", "_group", "_matches", "_request")

    def __init__(
        self,
        broker: Broker,
        call: Call[PullMessage] | Call[LitePullMessage],
        group: SubscriptionGroupConfig,
        matches: Matches | None,
    ) -> None:
        self._broker = broker
        self._call = call
        self._request: PullMessage = call.header
        self._group = group
        self._matches = matches

    def run(self, may_wait: bool) -> Reply | Later:
        """Reads in line if the data is in memory; else in a thread, and answers later."""
        try:
            result = self._read(allow_cold=False)
        except ColdRead:
            return self._call.wait(self._read_cold, may_wait)
        return self._conclude(result, may_wait)

    def resume(self) -> None:
        """Runs again because a message arrived or the time is over; does not wait a second time."""
        self._call.resume(self.run, False)

    async def _read_cold(self, may_wait: bool) -> Reply | Later:
        result = await self._broker.storage.read_cold(partial(self._read, allow_cold=True))
        return self._conclude(result, may_wait)

    def _read(self, allow_cold: bool) -> GetResult:
        request = self._request
        started = perf_counter()
        result = self._broker.store.get(
            request.topic,
            request.queue_id,
            request.queue_offset,
            request.max_msg_nums,
            matches=self._matches,
            max_bytes=request.max_msg_bytes,
            allow_cold=allow_cold,
        )
        self._broker.stats.read_took(perf_counter() - started)
        return result

    def _conclude(self, result: GetResult, may_wait: bool) -> Reply | Later:
        request, broker = self._request, self._broker
        code = self._code(result)
        if may_wait and (
            (code == ResponseCode.PULL_NOT_FOUND and self._park(request.suspend_timeout_millis))
            or (code == ResponseCode.PULL_OFFSET_MOVED and self._is_alone and self._park(ALONE_PAUSE_MS))
        ):
            return LATER
        header = PullMessageReply(
            suggest_which_broker_id=self._suggest(result),
            next_begin_offset=result.next_offset,
            min_offset=result.min_offset,
            max_offset=result.max_offset,
        )
        if self._leaves_offsets_alone and result.status in _CORRECTED:
            header.next_begin_offset = request.queue_offset
        if code == ResponseCode.PULL_OFFSET_MOVED:
            code = self._moved(header)
        broker.offsets.pulled(request.consumer_group, request.topic, request.queue_id, header.next_begin_offset)
        broker.stats.pull_answered(result.count)
        if code == ResponseCode.SUCCESS:
            broker.metrics.messages_delivered(request.topic, request.consumer_group, result.count, result.size)
        return Reply(header, b"".join(result.data), code, result.status.name)

    def _code(self, result: GetResult) -> ResponseCode:
        if result.status in _EMPTY_QUEUE and self._request.queue_offset == 0:
            return ResponseCode.PULL_NOT_FOUND
        return _CODES[result.status]

    def _suggest(self, result: GetResult) -> int:
        """suggestWhichBrokerId: 0 unless reading from slaves is switched on."""
        if not self._broker.options.slave_read_enable:
            return 0
        return self._group.which_broker_when_consume_slowly if result.fell_behind_memory else self._group.broker_id

    @property
    def _leaves_offsets_alone(self) -> bool:
        """A slave may lack what its master has, so unless it is told to it corrects nobody's offset."""
        options = self._broker.store_options
        return options.broker_role is BrokerRole.SLAVE and not options.offset_check_in_slave

    @property
    def _is_alone(self) -> bool:
        """A slave without its master: whoever it sends there comes back at once, so it had better not hurry."""
        return self._leaves_offsets_alone and not self._broker.replication.locator.linked

    def _moved(self, header: PullMessageReply) -> ResponseCode:
        """The offset is not there: a slave sends the consumer to its master, a master notes the event."""
        if self._leaves_offsets_alone:
            header.suggest_which_broker_id = self._group.broker_id
            return ResponseCode.PULL_RETRY_IMMEDIATELY
        if self._broker.store_options.broker_role is not BrokerRole.SLAVE:  # whose log is its master's to write
            self._broker.offset_moved.note(self._broker, self._request, header.next_begin_offset)
        return ResponseCode.PULL_OFFSET_MOVED

    def _park(self, wait_ms: int) -> bool:
        request, options = self._request, self._broker.options
        if not options.long_polling_enable:
            wait_ms = options.short_polling_time_mills
        if wait_ms <= 0:
            return False
        return self._broker.pulls.park(
            ParkedPull(
                self._call.connection,
                (request.topic, request.queue_id),
                self._matches,
                trio.current_time() + wait_ms / 1000,
                self.resume,
            )
        )


def _check(broker: Broker, call: Call[PullMessage] | Call[LitePullMessage]) -> SubscriptionGroupConfig:
    """May this group read this queue at all? Raises Refused; returns the group's settings."""
    request = call.header
    if broker.replication.locator.refused:
        raise Refused(ResponseCode.SYSTEM_BUSY, "this slave's log is not its master's; the master has to be asked")
    if not broker.options.broker_permission & PERM_READ:
        raise Refused(
            ResponseCode.NO_PERMISSION, f"the broker[{broker.options.broker_ip1}] pulling message is forbidden"
        )
    group = broker.groups.find(request.consumer_group)
    if not group.consume_enable:
        raise Refused(ResponseCode.NO_PERMISSION, f"subscription group no permission, {request.consumer_group}")
    topic = broker.topics.get(request.topic)
    if topic is None:
        raise Refused(ResponseCode.TOPIC_NOT_EXIST, f"topic[{request.topic}] not exist, apply first please!")
    if not topic.perm & PERM_READ:
        raise Refused(ResponseCode.NO_PERMISSION, f"the topic[{request.topic}] pulling message is forbidden")
    if not 0 <= request.queue_id < topic.read_queue_nums:
        raise Refused(
            ResponseCode.SYSTEM_ERROR,
            f"queueId[{request.queue_id}] is illegal, topic:[{request.topic}] "
            f"topicConfig.readQueueNums:[{topic.read_queue_nums}] consumer:[{call.connection.remote_address}]",
        )
    return group


def _subscription(broker: Broker, request: PullMessage, group: SubscriptionGroupConfig) -> SubscriptionData:
    """What the consumer wants of the topic: from its request if it says so, else from its heartbeat."""
    if request.sys_flag & PULL_SUBSCRIPTION:
        subscription = subscription_of_request(
            request.topic, request.subscription, request.expression_type, request.sub_version
        )
    else:
        consumers = broker.clients.consumer_group(request.consumer_group)
        if consumers is None:
            raise Refused(ResponseCode.SUBSCRIPTION_NOT_EXIST, "the consumer's group info not exist")
        if consumers.message_model == MessageModel.BROADCASTING and not group.consume_broadcast_enable:
            raise Refused(
                ResponseCode.NO_PERMISSION,
                f"the consumer group[{request.consumer_group}] can not consume by broadcast way",
            )
        known = consumers.subscriptions.get(request.topic)
        if known is None:
            raise Refused(ResponseCode.SUBSCRIPTION_NOT_EXIST, "the consumer's subscription not exist")
        if known.sub_version < request.sub_version:
            raise Refused(ResponseCode.SUBSCRIPTION_NOT_LATEST, "the consumer's subscription not latest")
        subscription = known
    if not is_tag_type(subscription.expression_type):
        raise Refused(
            ResponseCode.SYSTEM_ERROR,
            f"The broker does not support consumer to filter message by {subscription.expression_type}",
        )
    return subscription
