"""What the name server answers: one function per request code (spec/remoting.md 4.1).

The set is that of 4.9.4 with what 5.3.3 adds (217, 901, 904). Remarks are the official ones, because tools print them.
"""

from typing import Any

import structlog

from gateway.broker.names import check_topic
from gateway.config import namesrv_properties
from gateway.namesrv.kvconfig import ORDER_TOPIC_CONFIG, KvConfigFull
from gateway.namesrv.registration import BROKER_TIMEOUT_MS, Registration, RouteTableFull
from gateway.namesrv.state import Namesrv, log_gone
from gateway.routing import Call, Later, Refused, Reply, Routes
from protocol.bodies import (
    BrokerData,
    BrokerMemberGroup,
    ClusterInfo,
    DataVersion,
    KVTable,
    RegisterBrokerBody,
    TopicList,
    TopicRouteData,
    TopicTableBody,
    crc32,
)
from protocol.codes import (
    TOPIC_UNIT,
    TOPIC_UNIT_SUB,
    VERSION_REGISTER_BODY,
    VERSION_STANDARD_JSON,
    ResponseCode,
)
from protocol.options import OptionError, properties_text
from protocol.requests.routes import (
    AddWritePermOfBroker,
    AddWritePermReply,
    BrokerHeartbeat,
    DataVersionReply,
    DeleteKvConfig,
    DeleteTopicInNamesrv,
    GetAllTopicListFromNameserver,
    GetBrokerClusterInfo,
    GetBrokerMemberGroup,
    GetHasUnitSubTopicList,
    GetHasUnitSubUnunitTopicList,
    GetKvConfig,
    GetKvlistByNamespace,
    GetNamesrvConfig,
    GetRouteinfoByTopic,
    GetSystemTopicListFromNs,
    GetTopicsByCluster,
    GetUnitTopicList,
    KvConfigReply,
    PutKvConfig,
    QueryDataVersion,
    RegisterBroker,
    RegisterBrokerReply,
    RegisterTopicInNamesrv,
    UnregisterBroker,
    UpdateNamesrvConfig,
    WipeWritePermOfBroker,
    WipeWritePermReply,
)

routes = Routes()
log = structlog.get_logger(__name__)

ZONE_MODE = "__ZONE_MODE"
ZONE_NAME = "__ZONE_NAME"
FIXED_BY_WIRE = frozenset({"kvConfigPath", "configStorePath", "rocketmqHome", "configBlackList"})
"""Keys whose very mention is refused, as 5.3.3 does: a peer must not move files (CVE-2023-37582)."""

# ---- brokers


@routes.handle
def register_broker(namesrv: Namesrv, call: Call[RegisterBroker]) -> Reply:
    header = call.header
    if header.body_crc32 and header.body_crc32 != crc32(call.body):
        raise Refused(ResponseCode.SYSTEM_ERROR, "crc32 not match")
    registration = _registration(call)
    try:
        result = namesrv.routes.register(registration, call.connection)
    except RouteTableFull as error:
        raise Refused(ResponseCode.SYSTEM_ERROR, str(error)) from None
    facts = {"broker": header.broker_name, "broker_id": header.broker_id, "address": header.broker_addr}
    if result.ignored:
        log.warning("broker_ignored", **facts, reason="a younger process has taken its id")
    if result.replaced_address is not None:
        log.warning("broker_replaced", **facts, before=result.replaced_address)
    if result.is_new:
        log.info("broker_registered", **facts, cluster=header.cluster_name, version=call.version)
        if result.cluster != header.cluster_name:
            log.warning("broker_in_other_cluster", **facts, own=header.cluster_name, of_its_name=result.cluster)
    if result.topics_changed:
        log.info("topics_changed", broker=header.broker_name, count=result.topics_changed)
    order = namesrv.kv.table(ORDER_TOPIC_CONFIG)
    reply = RegisterBrokerReply(ha_server_addr=result.master_ha_address, master_addr=result.master_address)
    return Reply(reply, body=b"" if order is None else KVTable(table=dict(order)).encode())


def _registration(call: Call[RegisterBroker]) -> Registration:
    header = call.header
    if not call.body:
        body = RegisterBrokerBody()
    elif call.version >= VERSION_REGISTER_BODY:
        body = RegisterBrokerBody.decode(call.body, compressed=header.compressed)
    else:
        body = RegisterBrokerBody(topic_config_serialize_wrapper=TopicTableBody.decode(call.body))
    table = body.topic_config_serialize_wrapper
    return Registration(
        cluster=header.cluster_name,
        broker_name=header.broker_name,
        broker_id=header.broker_id,
        address=header.broker_addr,
        ha_address=header.ha_server_addr,
        version=table.data_version,
        topics=table.topic_config_table,
        filter_servers=body.filter_server_list,
        timeout_ms=header.heartbeat_timeout_millis or BROKER_TIMEOUT_MS,
        enable_acting_master=header.enable_acting_master,
        zone_name=call.command.fields.get(ZONE_NAME),
    )


@routes.handle
def unregister_broker(namesrv: Namesrv, call: Call[UnregisterBroker]) -> None:
    broker = namesrv.routes.unregister(call.header.broker_addr, call.header.broker_name)
    if broker is not None:
        log_gone(broker, "unregistered")


@routes.handle
def query_data_version(namesrv: Namesrv, call: Call[QueryDataVersion]) -> Reply:
    version = DataVersion.decode(call.body)
    changed, known = namesrv.routes.query_version(call.header.broker_addr, version)
    return Reply(DataVersionReply(changed=changed), body=b"" if known is None else known.encode())


@routes.handle
def broker_heartbeat(namesrv: Namesrv, call: Call[BrokerHeartbeat]) -> None:
    namesrv.routes.heartbeat(call.header.broker_addr)


@routes.handle
def get_broker_member_group(namesrv: Namesrv, call: Call[GetBrokerMemberGroup]) -> Reply:
    header = call.header
    addresses = namesrv.routes.member_addresses(header.broker_name)
    group = BrokerData(broker_addrs=addresses, broker_name=header.broker_name, cluster=header.cluster_name)
    return Reply(body=BrokerMemberGroup(broker_member_group=group).encode())


@routes.handle
def get_broker_cluster_info(namesrv: Namesrv, call: Call[GetBrokerClusterInfo]) -> Reply:
    table = namesrv.routes
    return Reply(body=ClusterInfo(broker_addr_table=table.brokers(), cluster_addr_table=table.clusters()).encode())


@routes.handle
def wipe_write_perm_of_broker(namesrv: Namesrv, call: Call[WipeWritePermOfBroker]) -> WipeWritePermReply:
    count = namesrv.routes.wipe_write_permission(call.header.broker_name)
    log.info("write_permission_wiped", broker=call.header.broker_name, topics=count, by=_asker(call))
    return WipeWritePermReply(wipe_topic_count=count)


@routes.handle
def add_write_perm_of_broker(namesrv: Namesrv, call: Call[AddWritePermOfBroker]) -> AddWritePermReply:
    count = namesrv.routes.add_write_permission(call.header.broker_name)
    log.info("write_permission_added", broker=call.header.broker_name, topics=count, by=_asker(call))
    return AddWritePermReply(add_topic_count=count)


# ---- topics


@routes.handle
def get_routeinfo_by_topic(namesrv: Namesrv, call: Call[GetRouteinfoByTopic]) -> Reply:
    """Standard JSON for those who read it; others get unquoted broker ids, which Go's client needs (spec 4.3)."""
    topic = call.header.topic
    standard = call.version >= VERSION_STANDARD_JSON or call.header.accept_standard_json_only is True
    fields = call.command.fields
    zone = fields.get(ZONE_NAME) if fields.get(ZONE_MODE, "").lower() == "true" else None
    order = namesrv.kv.get(ORDER_TOPIC_CONFIG, topic) if namesrv.options.order_message_enable else None
    if zone or order is not None:
        route = namesrv.routes.route(topic, zone or None)
        body = None
        if route is not None:
            route.order_topic_conf = order
            body = route.encode(standard=standard)
    else:
        body = namesrv.routes.route_answer(topic, standard)
    if body is None:
        remark = (
            f"No topic route info in name server for the topic: {topic}\n"
            "See http://rocketmq.apache.org/docs/faq/ for further details."
        )
        raise Refused(ResponseCode.TOPIC_NOT_EXIST, remark)
    return Reply(body=body)


@routes.handle
def register_topic_in_namesrv(namesrv: Namesrv, call: Call[RegisterTopicInNamesrv]) -> None:
    check_topic(call.header.topic)
    route = TopicRouteData.decode(call.body)
    try:
        added = namesrv.routes.add_topic(call.header.topic, route.queue_datas)
    except RouteTableFull as error:
        raise Refused(ResponseCode.SYSTEM_ERROR, str(error)) from None
    if not added:
        log.warning("topic_ignored", topic=call.header.topic, reason="not all of its brokers are registered")


@routes.handle
def delete_topic_in_namesrv(namesrv: Namesrv, call: Call[DeleteTopicInNamesrv]) -> None:
    brokers = namesrv.routes.delete_topic(call.header.topic, call.header.cluster_name)
    log.info("topic_deleted", topic=call.header.topic, brokers=brokers, by=_asker(call))


@routes.handle
def get_all_topic_list_from_nameserver(namesrv: Namesrv, call: Call[GetAllTopicListFromNameserver]) -> Reply:
    return _topic_list(namesrv.routes.topics())


@routes.handle
def get_topics_by_cluster(namesrv: Namesrv, call: Call[GetTopicsByCluster]) -> Reply:
    return _topic_list(namesrv.routes.topics_of_cluster(call.header.cluster))


@routes.handle
def get_system_topic_list_from_ns(namesrv: Namesrv, call: Call[GetSystemTopicListFromNs]) -> Reply:
    """Clusters and brokers have topics of their own names. The asker gets the rest from the broker that is named."""
    clusters = namesrv.routes.clusters()
    names = dict.fromkeys(name for cluster, brokers in clusters.items() for name in (cluster, *brokers))
    return _topic_list(list(names), namesrv.routes.any_address())


@routes.handle
def get_unit_topic_list(namesrv: Namesrv, call: Call[GetUnitTopicList]) -> Reply:
    return _topic_list(namesrv.routes.topics_with_flags(TOPIC_UNIT))


@routes.handle
def get_has_unit_sub_topic_list(namesrv: Namesrv, call: Call[GetHasUnitSubTopicList]) -> Reply:
    return _topic_list(namesrv.routes.topics_with_flags(TOPIC_UNIT_SUB))


@routes.handle
def get_has_unit_sub_ununit_topic_list(namesrv: Namesrv, call: Call[GetHasUnitSubUnunitTopicList]) -> Reply:
    return _topic_list(namesrv.routes.topics_with_flags(TOPIC_UNIT_SUB, without=TOPIC_UNIT))


def _topic_list(topics: list[str], broker_address: str | None = None) -> Reply:
    return Reply(body=TopicList(topic_list=topics, broker_addr=broker_address).encode())


# ---- key-value configuration


@routes.handle
def put_kv_config(namesrv: Namesrv, call: Call[PutKvConfig]) -> Later:
    header = call.header
    try:
        change = namesrv.kv.put(header.namespace, header.key, header.value)
    except KvConfigFull as error:
        raise Refused(ResponseCode.SYSTEM_ERROR, str(error)) from None
    log.info("kv_config_set", namespace=header.namespace, key=header.key, value=header.value, by=_asker(call))
    return _answer_when_saved(namesrv, call, change)


@routes.handle
def delete_kv_config(namesrv: Namesrv, call: Call[DeleteKvConfig]) -> Later:
    change = namesrv.kv.delete(call.header.namespace, call.header.key)
    log.info("kv_config_deleted", namespace=call.header.namespace, key=call.header.key, by=_asker(call))
    return _answer_when_saved(namesrv, call, change)


def _answer_when_saved(namesrv: Namesrv, call: Call[PutKvConfig] | Call[DeleteKvConfig], change: int) -> Later:
    """The change is made, so that the next request sees it; the answer leaves when it is on disk."""
    return call.wait(_confirm_saved, namesrv, change)


async def _confirm_saved(namesrv: Namesrv, change: int) -> None:
    await namesrv.kv.settled.wait_for(change)
    problem = namesrv.kv.problem
    if problem is not None:
        raise Refused(ResponseCode.SYSTEM_ERROR, f"in effect until the next start, but not saved: {problem}")


@routes.handle
def get_kv_config(namesrv: Namesrv, call: Call[GetKvConfig]) -> KvConfigReply:
    namespace, key = call.header.namespace, call.header.key
    value = namesrv.kv.get(namespace, key)
    if value is None:
        raise Refused(ResponseCode.QUERY_NOT_FOUND, f"No config item, Namespace: {namespace} Key: {key}")
    return KvConfigReply(value=value)


@routes.handle
def get_kvlist_by_namespace(namesrv: Namesrv, call: Call[GetKvlistByNamespace]) -> Reply:
    table = namesrv.kv.table(call.header.namespace)
    if table is None:
        raise Refused(ResponseCode.QUERY_NOT_FOUND, f"No config item, Namespace: {call.header.namespace}")
    return Reply(body=KVTable(table=dict(table)).encode())


# ---- the name server's own configuration


@routes.handle
def get_namesrv_config(namesrv: Namesrv, call: Call[GetNamesrvConfig]) -> Reply:
    settings = namesrv_properties(namesrv.options) | {"configStorePath": str(namesrv.config_file)}
    return Reply(body=properties_text(settings).encode())


@routes.handle
def update_namesrv_config(namesrv: Namesrv, call: Call[UpdateNamesrvConfig]) -> None:
    """Wholly or not at all; what changed is also in the file afterwards, so that it lasts over a restart."""
    given = _properties(call.body)
    if not FIXED_BY_WIRE.isdisjoint(given):
        raise Refused(ResponseCode.NO_PERMISSION, "Can not update config in black list.")
    options = namesrv.options
    before = options.to_properties()
    try:
        changed = options.change(given)
    except OptionError as error:
        raise Refused(ResponseCode.SYSTEM_ERROR, str(error)) from None
    after = options.to_properties()
    if changed:
        try:
            namesrv.save_options(namesrv.config_file, {key: after[key] for key in changed})
        except OSError as error:
            options.change({key: before[key] for key in changed})
            remark = f"not changed, because {namesrv.config_file} cannot be written: {error.strerror or error}"
            raise Refused(ResponseCode.SYSTEM_ERROR, remark) from None
    log.info("config_changed", **{key: after[key] for key in changed}, by=_asker(call))
    unknown = sorted(given.keys() - namesrv_properties(options).keys())
    if unknown:
        log.warning("unknown_config_keys", keys=unknown, by=_asker(call))


def _properties(text: bytes) -> dict[str, str]:
    import javaproperties  # takes as long to import as all else that a start needs

    try:
        return dict(javaproperties.loads(text.decode()))
    except (UnicodeDecodeError, javaproperties.InvalidUEscapeError):
        raise Refused(ResponseCode.SYSTEM_ERROR, "string2Properties error") from None


def _asker(call: Call[Any]) -> str:
    return call.connection.remote_address
