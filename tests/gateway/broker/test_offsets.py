"""Consumer offsets: kept exactly, never nonsense, in the file that the official broker reads."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.broker import names, offsets
from gateway.broker.offsets import NOT_FOUND, OffsetTable
from gateway.routing import Refused
from protocol.bodies import ConsumerOffsetBody
from tests.gateway.broker.fakes import Clock

FAR = 2**63 - 1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config" / "consumerOffset.json"


@pytest.fixture
def table(path: Path) -> OffsetTable:
    return OffsetTable(path, Clock())


def test_what_was_committed_is_found(table: OffsetTable) -> None:
    assert table.query("g", "T", 0) == NOT_FOUND
    table.commit("g", "T", 0, 5, ceiling=10)
    assert table.query("g", "T", 0) == 5
    assert table.query("g", "T", 1) == NOT_FOUND
    assert table.query("h", "T", 0) == NOT_FOUND
    table.commit("g", "T", 0, 3, ceiling=10)
    assert table.query("g", "T", 0) == 3
    assert len(table) == 1


@pytest.mark.parametrize("offset", [11, 2**40, FAR])
def test_no_offset_is_beyond_the_end_of_the_queue(table: OffsetTable, offset: int) -> None:
    table.commit("g", "T", 0, offset, ceiling=10)
    assert table.query("g", "T", 0) == 10


@pytest.mark.parametrize(("queue_id", "offset"), [(0, -1), (0, -FAR), (-1, 5)])
def test_negative_numbers_are_refused(table: OffsetTable, queue_id: int, offset: int) -> None:
    with pytest.raises(Refused, match="negative"):
        table.commit("g", "T", queue_id, offset, ceiling=10)
    assert len(table) == 0
    assert not table.file.dirty


def test_entries_are_bounded(table: OffsetTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offsets, "MAX_ENTRIES", 2)
    table.commit("g", "T", 0, 1, ceiling=9)
    table.commit("g", "T", 1, 1, ceiling=9)
    with pytest.raises(Refused, match="limit of 2"):
        table.commit("g", "T", 2, 1, ceiling=9)
    with pytest.raises(Refused, match="limit of 2"):
        table.clone("g", "h", "T")
    table.commit("g", "T", 1, 2, ceiling=9)
    assert table.queues("g", "T") == {0: 1, 1: 2}
    table.remove_group("g")
    table.commit("h", "T", 2, 1, ceiling=9)


def test_pairs_of_topic_and_group_are_bounded(table: OffsetTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offsets, "MAX_KEYS", 2)
    for group in "gh":
        table.commit(group, "T", 0, 1, ceiling=9)
    with pytest.raises(Refused, match="or of 2 topics"):
        table.commit("i", "T", 0, 1, ceiling=9)
    with pytest.raises(Refused, match="or of 2 topics"):
        table.clone("g", "i", "T")
    table.commit("g", "T", 1, 1, ceiling=9)
    table.clone("g", "h", "T")
    table.remove_group("g")
    table.commit("i", "T", 0, 1, ceiling=9)


OWN = [(names.TRANSACTION_GROUP, topic, 0) for topic in (names.HALF_TOPIC, names.OP_HALF_TOPIC)]


@pytest.mark.parametrize("limit", ["MAX_ENTRIES", "MAX_KEYS"])
def test_the_brokers_own_offsets_are_kept_in_a_full_table(
    table: OffsetTable, path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(offsets, limit, 2)
    for key in (("g", "T", 0), *OWN, ("h", "T", 0)):
        table.commit(*key, 1, ceiling=9)
    for key in (("i", "T", 0), ("CID_RMQ_SYS_x", "T", 0), (names.TRANSACTION_GROUP, "T", 0)):
        with pytest.raises(Refused, match="limit of"):
            table.commit(*key, 1, ceiling=9)
    table.file.save()
    again = OffsetTable(path, Clock())
    assert len(again) == len(table) == 4
    assert [again.query(*key) for key in OWN] == [1, 1]
    table.remove_group(names.TRANSACTION_GROUP)
    table.commit(*OWN[0], 2, ceiling=9)
    assert table.query(*OWN[0]) == 2


def test_who_has_offsets_where(table: OffsetTable) -> None:
    for group, topic in (("g", "T"), ("g", "U"), ("h", "T"), ("gg", "TT")):
        table.commit(group, topic, 0, 1, ceiling=9)
    assert table.topics_of("g") == ["T", "U"]
    assert table.groups_of("T") == ["g", "h"]
    table.remove_topic("T")
    assert table.topics_of("g") == ["U"]
    assert table.groups_of("TT") == ["gg"]
    table.remove_group("g")
    assert len(table) == 1


def test_what_was_given_is_noted_where_something_was_committed(table: OffsetTable) -> None:
    table.commit("g", "T", 0, 1, ceiling=9)
    for queue_id in (0, 1):
        table.pulled("g", "T", queue_id, 5)
    table.pulled("stranger", "T", 0, 5)
    assert table.pulled_queues("g", "T") == {0: 5}
    assert table.pulled_queues("stranger", "T") == {}
    table.remove_group("g")
    assert table.pulled_queues("g", "T") == {}


def test_a_clone_is_independent(table: OffsetTable) -> None:
    table.commit("g", "T", 0, 4, ceiling=9)
    table.clone("g", "h", "T")
    table.clone("g", "h", "unknown")
    table.commit("g", "T", 0, 5, ceiling=9)
    assert table.queues("h", "T") == {0: 4}
    assert table.queues("h", "unknown") == {}


def test_the_file_has_the_official_form(table: OffsetTable, path: Path) -> None:
    table.commit("g", "T", 1, 90, ceiling=100)
    table.commit("g", "T", 0, 100, ceiling=100)
    table.file.save()
    assert path.read_bytes() == b'{\n\t"offsetTable":{\n\t\t"T@g":{0:100,1:90\n\t\t}\n\t}\n}'


def test_official_files_are_read(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b'{\n\t"offsetTable":{\n\t\t"%RETRY%g@g":{0:3\n\t\t},\n\t\t"T@g":{0:100,1:90\n\t\t}\n\t}\n}')
    table = OffsetTable(path, Clock())
    assert table.queues("g", "T") == {0: 100, 1: 90}
    assert table.queues("g", "%RETRY%g") == {0: 3}
    assert len(table) == 3
    assert not table.file.dirty


def test_entries_that_can_be_nobodys_are_left_out(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b'{"offsetTable":{"T@g":{0:-7,-1:5,2:9},"T":{0:1},"@g":{0:1},"T@":{0:1}}}')
    table = OffsetTable(path, Clock())
    assert table.queues("g", "T") == {2: 9}
    assert len(table) == 1


def test_what_only_a_newer_broker_understands_stays_in_the_file(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b'{"offsetTable":{"T@g@broadcast":{0:3}}}')
    table = OffsetTable(path, Clock())
    assert table.query("g", "T", 0) == NOT_FOUND
    table.file.save()
    assert b'"T@g@broadcast":{0:3' in path.read_bytes()


name = st.text("abcXYZ019%|-_", min_size=1, max_size=20)


@given(st.dictionaries(st.tuples(name, name, st.integers(0, 2**31 - 1)), st.integers(0, FAR), max_size=12))
def test_any_offsets_survive_the_file(
    tmp_path_factory: pytest.TempPathFactory, wanted: dict[tuple[str, str, int], int]
) -> None:
    path = tmp_path_factory.mktemp("config") / "consumerOffset.json"
    table = OffsetTable(path, Clock())
    for (group, topic, queue_id), offset in wanted.items():
        table.commit(group, topic, queue_id, offset, ceiling=FAR)
    table.file.save()
    again = OffsetTable(path, Clock())
    assert {key: again.query(*key) for key in wanted} == wanted
    assert len(again) == len(wanted)


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=9).map(lambda text: text.replace("@", "-") + "@" + text),
        st.dictionaries(st.integers(0, 2**31 - 1), st.integers(0, FAR), min_size=1, max_size=9),
        max_size=5,
    ),
)
def test_the_fast_text_is_the_declared_one(wanted: dict[str, dict[int, int]]) -> None:
    body = ConsumerOffsetBody(offset_table=wanted)
    table = OffsetTable(Path("/nowhere/consumerOffset.json"), Clock())
    table.merge(body)
    assert table.encode() == body.encode(pretty=True)
    assert table.encode_for_slaves() == table.snapshot().encode()
    assert table.snapshot().offset_table == wanted


def test_each_change_has_its_version(table: OffsetTable, path: Path) -> None:
    versions = [table.data_version]
    changes: list[Callable[[], None]] = [
        lambda: table.commit("g", "T", 0, 4, ceiling=9),
        lambda: table.commit("g", "T", 0, 5, ceiling=9),
        lambda: table.clone("g", "h", "T"),
        lambda: table.remove_group("h"),
        lambda: table.merge(ConsumerOffsetBody(offset_table={"T@g": {0: 7}})),
    ]
    for change in changes:
        change()
        versions.append(table.data_version)
    assert len(set(versions)) == len(versions)
    table.file.save()
    clock = Clock()
    clock.advance(1)
    assert OffsetTable(path, clock).data_version not in versions


def test_what_slaves_are_told_has_a_version_and_the_file_has_none(table: OffsetTable) -> None:
    version = b'{"dataVersion":{"counter":%d,"timestamp":%d},"offsetTable":'
    start = table.data_version.timestamp
    assert table.encode_for_slaves() == version % (0, start) + b"{}}"
    table.commit("g", "T", 0, 4, ceiling=9)
    assert table.encode_for_slaves() == version % (1, start) + b'{"T@g":{0:4}}}'
    assert b"dataVersion" not in table.encode()


def test_a_slave_takes_over_its_masters_offsets_and_keeps_what_is_only_here(table: OffsetTable) -> None:
    table.commit("g", "T", 0, 4, ceiling=9)
    table.commit("g", "T", 1, 4, ceiling=9)
    table.commit("only_here", "T", 0, 4, ceiling=9)
    table.merge(ConsumerOffsetBody.decode(b'{"offsetTable":{"T@g":{0:7}}}'))
    assert table.queues("g", "T") == {0: 7}
    assert table.query("only_here", "T", 0) == 4
    assert len(table) == 2
