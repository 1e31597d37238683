"""The dashboard, the alerts and the scrape configuration ask for nothing that the servers do not expose.

A name server and a broker are started and used once; what `/metrics` then shows is the measure. PromQL is taken apart
here only as far as names, labels and values go; its grammar is promtool's to check, where there is one.
"""

import json
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from gateway.broker.app import serve_broker
from gateway.config import BrokerOptions, NamesrvOptions
from gateway.namesrv.app import serve_namesrv
from protocol.codes import RequestCode, ResponseCode
from store.options import BrokerRole
from tests.gateway.hostile.rig import (
    CREATE_TOPIC,
    GROUP,
    HEARTBEAT,
    PULL,
    ROUTE,
    SEND_V2,
    TOPIC,
    TOPIC_FIELDS,
    Client,
    broker_options,
    free_ports,
    namesrv_options,
    pull_fields,
    send_fields,
    store_options,
)

FOLDER = Path(__file__).parents[2] / "grafana"
DASHBOARD = json.loads((FOLDER / "pocketmq.json").read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
VARIABLES: list[dict[str, Any]] = DASHBOARD["templating"]["list"]

COMMIT_OFFSET, SEND_BACK, END_TRANSACTION = 15, 36, 37
PREPARED, COMMIT, ROLLBACK = 4, 8, 12
OF_A_TARGET = {"job", "instance"}
AGGREGATIONS = {"sum", "max", "min", "count"}
FUNCTIONS = {"rate", "deriv", "delta", "histogram_quantile", "max_over_time", "vector"}
CLAUSES = {"by", "on"}
OPERATORS = {"and", "or", "offset"}
TOKEN = re.compile(r'"[^"]*"|\[[^]]*\]|\d+[smh]\b|[\d.]+|[a-z_]\w*|[=!<>]=|[=!]~|\S', re.IGNORECASE)
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')


# ---- what the servers expose

Exposed = dict[str, dict[str, set[str]]]
"""Values by label by name of a sample, of one server."""


async def scrape(port: int) -> Exposed:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        text = b"".join([part async for part in stream]).decode().partition("\r\n\r\n")[2]
    exposed: Exposed = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = exposed.setdefault(sample.name, defaultdict(set))
            for label, value in sample.labels.items():
                labels[label].add(value)
    return exposed


async def use(client: Client) -> None:
    """One of everything that has a metric."""
    clients = {
        "clientID": "c",
        "producerDataSet": [{"groupName": "producers"}],
        "consumerDataSet": [{"groupName": GROUP, "subscriptionDataSet": [{"topic": TOPIC, "subString": "*"}]}],
    }
    await succeed(client, CREATE_TOPIC, TOPIC_FIELDS)
    await succeed(client, HEARTBEAT, {}, json.dumps(clients).encode())
    place = await succeed(client, SEND_V2, send_fields(), b"body")
    await succeed(client, SEND_V2, send_fields(i="DELAY\x011\x02"), b"later")
    await succeed(client, PULL, pull_fields())
    for group in (GROUP, "CID_RMQ_SYS_TRANS"):
        offset = {"consumerGroup": group, "topic": TOPIC, "queueId": 0, "commitOffset": 1}
        await succeed(client, COMMIT_OFFSET, offset)
    back = {"group": GROUP, "delayLevel": -1, "originTopic": TOPIC, "maxReconsumeTimes": 16}
    await succeed(client, SEND_BACK, back | {"offset": log_offset(place)})
    for key, verdict in (("k1", COMMIT), ("k2", ROLLBACK)):
        properties = f"TRAN_MSG\x01true\x02PGROUP\x01producers\x02UNIQ_KEY\x01{key}\x02"
        half = await succeed(client, SEND_V2, send_fields(f=PREPARED, i=properties), b"half")
        decision = {"producerGroup": "producers", "msgId": key, "commitOrRollback": verdict}
        decision |= {"tranStateTableOffset": half["queueOffset"], "commitLogOffset": log_offset(half)}
        await succeed(client, END_TRANSACTION, decision)


async def succeed(client: Client, code: int, fields: Mapping[str, object], body: bytes = b"") -> dict[str, str]:
    answer = await client.ask(code, fields, body)
    assert answer.code == ResponseCode.SUCCESS, answer
    return answer.fields


def log_offset(sent: dict[str, str]) -> int:
    """Where the message is in the commitlog: the second half of its id."""
    return int(sent["msgId"][-16:], 16)


async def expose(directory: Path) -> tuple[Exposed, Exposed]:
    """What a broker and a name server show that have been used."""
    namesrv = namesrv_options(directory, metrics_port=free_ports())
    broker = broker_options(metrics_port=free_ports(), namesrv_addr=f"127.0.0.1:{namesrv.listen_port}")
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve_namesrv, namesrv))
            await nursery.start(partial(serve_broker, broker, store_options(directory)))
            slave = broker_options(broker_id=1)
            following = {"broker_role": BrokerRole.SLAVE, "ha_master_address": f"127.0.0.1:{broker.listen_port + 1}"}
            await nursery.start(partial(serve_broker, slave, store_options(directory / "slave", **following)))
            async with (
                await trio.open_tcp_stream("127.0.0.1", broker.listen_port) as to_broker,
                await trio.open_tcp_stream("127.0.0.1", namesrv.listen_port) as to_namesrv,
            ):
                await use(Client(to_broker))
                await Client(to_namesrv).ask(ROUTE, {"topic": TOPIC})
                exposed = await scrape(broker.metrics_port), await scrape(namesrv.metrics_port)
                while not exposed[0].get("rocketmq_replication_behind_bytes"):  # the slave is on its way
                    exposed = await scrape(broker.metrics_port), exposed[1]
            nursery.cancel_scope.cancel()
    return exposed


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Exposed, ...]:
    """The broker, the name server, and what Prometheus adds about both."""
    of_broker, of_namesrv = trio.run(expose, tmp_path_factory.mktemp("servers"))
    codes = {"request_code": RequestCode, "response_code": ResponseCode}
    for exposed in (of_broker, of_namesrv):
        for labels in exposed.values():
            for label in codes.keys() & labels.keys():
                labels[label] = {code.name.lower() for code in codes[label]}
    return of_broker, of_namesrv, {"up": {"job": set(jobs())}}


# ---- what is asked


class Selector(NamedTuple):
    name: str
    matchers: Sequence[tuple[str, str, str]]
    """Label, operator and value."""


class Query(NamedTuple):
    selectors: list[Selector]
    clauses: list[tuple[str, set[str], list[Selector]]]
    """`by` or `on`, its labels, and the selectors that they are about."""
    result: set[str] | None
    """Labels of the result; None for those of the first selector."""


def parse(expr: str) -> Query:
    """The names, labels and values of an expression. `by` stands before its operand."""
    tokens = TOKEN.findall(expr)
    found: list[tuple[int, Selector]] = []
    clauses: list[tuple[int, str, set[str]]] = []
    position = 0
    while position < len(tokens):
        token, following = tokens[position], tokens[position + 1 : position + 2]
        if token in CLAUSES:
            end = tokens.index(")", position)
            clauses.append((end + 1, token, set(tokens[position + 2 : end]) - {","}))
            position = end
        elif token in AGGREGATIONS | FUNCTIONS:
            assert following in (["("], ["by"]), expr
        elif re.fullmatch(r"[a-z_]\w*", token) and token not in OPERATORS:
            end = tokens.index("}", position) if following == ["{"] else position
            matchers = MATCHER.findall("".join(tokens[position + 2 : end]))
            found.append((position, Selector(token, matchers)))
            position = end
        position += 1
    selectors = [selector for _, selector in found]
    about = []
    for start, kind, labels in clauses:
        end = closing(tokens, start) if kind == "by" else len(tokens)
        about.append((kind, labels, [s for at, s in found if kind == "on" or start < at < end]))
    return Query(selectors, about, result_labels(tokens, clauses))


def closing(tokens: Sequence[str], start: int) -> int:
    """Where the bracket that opens at `start` ends."""
    assert tokens[start] == "(", tokens
    depth = 0
    for position in range(start, len(tokens)):
        depth += (tokens[position] == "(") - (tokens[position] == ")")
        if depth == 0:
            return position
    raise AssertionError(f"a bracket is not closed: {tokens}")


def result_labels(tokens: Sequence[str], clauses: Sequence[tuple[int, str, set[str]]]) -> set[str] | None:
    for position, token in enumerate(tokens):
        if token in AGGREGATIONS:
            return clauses[0][2] if tokens[position + 1] == "by" else set()
        if re.fullmatch(r"[a-z_]\w*", token) and token not in FUNCTIONS:
            return None
    raise AssertionError(f"no metric: {tokens}")


def panel_queries() -> list[tuple[str, str, str]]:
    """Title, expression and legend of everything that is drawn."""
    return [
        (panel["title"], target["expr"], target["legendFormat"])
        for panel in PANELS
        for target in panel.get("targets", [])
    ]


def variable_queries() -> dict[str, tuple[str, str]]:
    """Expression and label of the variables that Prometheus fills."""
    queries = {}
    for variable in VARIABLES:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"])
            assert found
            assert variable["query"]["query"] == variable["definition"]
            queries[variable["name"]] = (found[1], found[2])
    return queries


@cache
def alerts() -> dict[str, tuple[str, str]]:
    """Expression of each alert, and the text that people are shown; expressions are folded blocks (`>-`)."""
    text = (FOLDER / "alerts.yml").read_text(encoding="utf-8")
    rules = re.split(r"^ +- alert: (\w+)\n", text, flags=re.MULTILINE)[1:]
    found = {}
    for name, rule in zip(rules[::2], rules[1::2], strict=True):
        expr = re.match(r" {8}expr: >-\n((?: {10}.+\n)+)", rule)
        assert expr, name
        found[name] = (" ".join(expr[1].split()), rule[expr.end() :])
    assert len(found) == text.count("alert:") == text.count("expr:")
    return found


def jobs() -> dict[str, str]:
    """Target of each job of prometheus.yml."""
    text = (FOLDER / "prometheus.yml").read_text(encoding="utf-8")
    return dict(re.findall(r'- job_name: (\S+)\n +static_configs:\n +- targets: \["(.+)"\]', text))


def everything() -> Iterator[tuple[str, str]]:
    yield from ((title, expr) for title, expr, _ in panel_queries())
    yield from ((f"${name}", expr) for name, (expr, _) in variable_queries().items())
    yield from ((name, expr) for name, (expr, _) in alerts().items())


def label_exists(servers: Sequence[Exposed], name: str, label: str) -> bool:
    return label in OF_A_TARGET or any(label in server.get(name, {}) for server in servers)


# ---- they fit


@pytest.mark.parametrize(("title", "expr"), list(everything()))
def test_what_is_asked_is_there(servers: tuple[Exposed, ...], title: str, expr: str) -> None:
    """One server has the metric with all the labels, and with each value that is spelt out."""
    query = parse(expr)
    assert query.selectors
    for name, matchers in query.selectors:
        labels = {label for label, _, _ in matchers}
        with_labels = [s[name] for s in servers if name in s and labels <= s[name].keys() | OF_A_TARGET]
        assert with_labels, f"{title}: no server exposes {name} with {sorted(labels)}"
        for label, _, value in matchers:
            for one in [] if value.startswith("$") else value.split("|"):
                known = set().union(*(exposed.get(label, set()) for exposed in with_labels))
                assert any(re.fullmatch(one, seen) for seen in known | opposite(known)), f'{title}: {label}="{one}"'
    for kind, labels, selectors in query.clauses:
        assert selectors, f"{title}: {kind} {sorted(labels)} is about nothing"
        for label in labels:
            missing = [name for name, _ in selectors if not label_exists(servers, name, label)]
            assert missing == [], f"{title}: {kind} ({label})"


def opposite(known: set[str]) -> set[str]:
    """A label that was seen with one truth value has the other one too."""
    return {"true", "false"} if known & {"true", "false"} else set()


@pytest.mark.parametrize(("title", "expr", "legend"), panel_queries())
def test_legends_show_labels_of_the_result(servers: tuple[Exposed, ...], title: str, expr: str, legend: str) -> None:
    assert_has_labels(servers, title, expr, re.findall(r"\{\{(\w+)\}\}", legend))


@pytest.mark.parametrize("name", alerts())
def test_alerts_name_labels_of_the_result(servers: tuple[Exposed, ...], name: str) -> None:
    expr, text = alerts()[name]
    labels = re.findall(r"\$labels\.(\w+)", text)
    assert labels
    assert_has_labels(servers, name, expr, labels)
    for title in re.findall(r"panel '(.+?)'", text):
        assert title in {panel["title"] for panel in PANELS}


def assert_has_labels(servers: Sequence[Exposed], title: str, expr: str, labels: Sequence[str]) -> None:
    query = parse(expr)
    for label in labels:
        if query.result is None:
            assert label_exists(servers, query.selectors[0].name, label), f"{title}: {label}"
        else:
            assert label in query.result, f"{title}: {label}"


def test_variables_are_labels_and_all_are_defined(servers: tuple[Exposed, ...]) -> None:
    for expr, label in variable_queries().values():
        assert label_exists(servers, parse(expr).selectors[0].name, label)
    used = set(re.findall(r"\$\{?(\w+)", json.dumps([PANELS, VARIABLES])))
    inputs = {given["name"] for given in DASHBOARD["__inputs"]}
    assert used == {variable["name"] for variable in VARIABLES} | inputs | {"__rate_interval", "__all"}


def test_dashboard_can_be_imported() -> None:
    assert (DASHBOARD["title"], DASHBOARD["uid"], DASHBOARD["id"]) == ("PocketMQ", "pocketmq", None)
    assert [given["pluginId"] for given in DASHBOARD["__inputs"]] == ["prometheus"]
    ids = [panel["id"] for panel in PANELS]
    assert len(set(ids)) == len(ids)
    drawn = [panel for panel in PANELS if panel["type"] != "row"]
    assert {panel["type"] for panel in drawn} <= {needed["id"] for needed in DASHBOARD["__requires"]}
    for panel in drawn:
        references = [target["refId"] for target in panel["targets"]]
        assert references
        assert len(set(references)) == len(references)
        for asking in (panel, *panel["targets"]):
            assert asking["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_panels_lie_side_by_side() -> None:
    places = [(panel["title"], panel["gridPos"]) for panel in PANELS]
    for title, at in places:
        assert at["x"] >= 0, title
        assert at["x"] + at["w"] <= 24, title
    for (title, a), (other, b) in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert beside or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"], f"{title} covers {other}"


def test_scrape_configuration_names_the_default_ports_and_the_rules() -> None:
    assert jobs() == {
        "rocketmq-broker": f"localhost:{BrokerOptions().metrics_port}",
        "rocketmq-namesrv": f"localhost:{NamesrvOptions().metrics_port}",
    }
    text = (FOLDER / "prometheus.yml").read_text(encoding="utf-8")
    (rules,) = re.findall(r"rule_files:\n +- (\S+)\n", text)
    assert (FOLDER / rules).is_file()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize(
    "command",
    [
        ("check", "rules", str(FOLDER / "alerts.yml")),
        ("check", "config", str(FOLDER / "prometheus.yml")),
        ("test", "rules", str(Path(__file__).with_name("alerts_fire.yml"))),
    ],
    ids=["rules", "config", "firing"],
)
def test_promtool_agrees(command: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
