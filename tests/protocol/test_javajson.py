"""fastjson's JSON: what is written can be read, what the official programs write is matched, rubbish is refused."""

import json
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codes import LanguageCode
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.javajson import (
    MAX_DEPTH,
    MAX_TOLERANT_BYTES,
    Key,
    ObjectKey,
    Reader,
    Value,
    loads,
    pairs_to_object,
)
from protocol.jsonwriter import dumps

# JSON has no lone surrogates, and Java's numbers end at 64 bits.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
scalars = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | texts
object_keys = st.builds(ObjectKey, st.dictionaries(texts, scalars, max_size=3))
keys: st.SearchStrategy[Key] = texts | st.integers(-(2**31), 2**31 - 1) | object_keys
values: st.SearchStrategy[Value] = st.recursive(
    scalars,
    lambda inner: st.lists(inner | st.none(), max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=20,
)
standard_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=20
)
# Bytes that come near JSON, so that more than the first character is looked at.
json_like = st.lists(
    st.sampled_from(
        ["{", "}", "[", "]", ":", ",", '"', '"a"', '"\\', "0", "-1", "1.5e3", "true", "null", " ", "\\u12", "é", "x"]
    )
).map("".join)


class Bean(msgspec.Struct, rename="camel"):
    second_name: str
    by_number: dict[int, str] = msgspec.field(default_factory=dict)
    items: list[int] = msgspec.field(default_factory=list)
    comment: str | None = None


bean_reader = Reader(Bean, "Bean")


# ---- reader and writer together


@given(values, st.booleans())
def test_what_is_written_can_be_read(value: Value, pretty: bool) -> None:
    assert loads(dumps(value, pretty=pretty)) == value


@given(standard_values)
def test_standard_json_is_read_as_every_reader_reads_it(value: Value) -> None:
    assert loads(json.dumps(value).encode()) == value
    assert json.loads(dumps(value, standard=True)) == value


@given(json_like.map(str.encode) | st.binary(max_size=60))
def test_rubbish_raises_nothing_but_protocol_errors(data: bytes) -> None:
    for read in (loads, bean_reader.decode):
        try:
            read(data)
        except RemoteProtocolError as error:
            assert error.remark  # noqa: PT017 - most examples do not raise in one of the two


@given(json_like.map(str.encode))
def test_what_every_reader_accepts_is_accepted(data: bytes) -> None:
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    assert loads(data) == _without_null_members(value)


def _without_null_members(value: Value) -> Value:
    if isinstance(value, dict):
        return {key: _without_null_members(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_null_members(item) for item in value]
    return value


# ---- reading


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"brokerAddrs":{0:"10.0.0.1:10911",1:".."}}', {"brokerAddrs": {0: "10.0.0.1:10911", 1: ".."}}),
        ("{ 0 : 1 , -5:2}", {0: 1, -5: 2}),
        ('{{"b":"x","q":0}:5}', {ObjectKey({"q": 0, "b": "x"}): 5}),
        ('{{"b":"x","q":0}:{},{"b":"x","q":1}:{}}', {ObjectKey({"b": "x", "q": n}): {} for n in range(2)}),
        ('{"a":null,"b":[null]}', {"b": [None]}),
        ('{"a":1,"a":2}', {"a": 2}),
        ('{"a":1,"a":null}', {}),
        ('"\\u00e9\\n\\"\\\\ {0:1}"', 'é\n"\\ {0:1}'),
        ("[]", []),
        (" true ", True),
        ("-1.5E3", -1500.0),
        (str(2**63), 2**63),
    ],
)
def test_forms(text: str, value: Value) -> None:
    assert loads(text.encode()) == value


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "character 0"),
        ("{", "character 1"),
        ('{"a"}', "character 4"),
        ('{"a":}', "character 5"),
        ('{"a":1,}', "character 7"),
        ("[1,]", "character 3"),
        ("[1 2]", "character 3"),
        ('{"a":1]', "character 6"),
        ("{1.5:2}", "character 1"),
        ("{true:2}", "character 1"),
        ('{{"a":{}}:2}', "character 1"),
        ('{{"a":[1]}:2}', "character 1"),
        ("01", "character 0"),
        ('"a', "character 0"),
        ('"\\x"', "character 0"),
        ('"\\ud800"', "character 0"),
        ('"\n"', "character 0"),
        ("nul", "character 0"),
        ("1e999", "character 0"),
        ("{}{}", "character 2"),
        ("'a'", "character 0"),
    ],
)
def test_errors_name_the_place(text: str, place: str) -> None:
    with pytest.raises(RemoteProtocolError, match=place):
        loads(text.encode())


def test_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="UTF-8 at byte 1"):
        loads(b'"\xff"')


@pytest.mark.parametrize("opening", ["[", '{"a":', '{"a":[', "{{"])
def test_depth_is_bounded(opening: str) -> None:
    with pytest.raises(RemoteProtocolError, match=f"{MAX_DEPTH} levels"):
        loads((opening * 10_000).encode())


def test_the_deepest_allowed_text_is_read() -> None:
    loads(b"[" * MAX_DEPTH + b"1" + b"]" * MAX_DEPTH)
    with pytest.raises(RemoteProtocolError, match="levels"):
        loads(b"[" * (MAX_DEPTH + 1) + b"1" + b"]" * (MAX_DEPTH + 1))


def test_size_is_bounded() -> None:
    loads(b" " * (MAX_TOLERANT_BYTES - 1) + b"1")
    with pytest.raises(RemoteProtocolError, match=str(MAX_TOLERANT_BYTES)):
        loads(b" " * MAX_TOLERANT_BYTES + b"1")


# ---- typed reading


@pytest.mark.parametrize(
    "text",
    [
        '{"secondName":"s","byNumber":{"0":"a","1":"b"},"items":[1,2]}',
        '{"secondName":"s","byNumber":{0:"a",1:"b"},"items":[1,2],"unknown":{}}',
        '{"secondName":"s","byNumber":{ 0 : "a", 1 : "b"},"items":["1",2],"comment":null}',
        '{"byNumber":{0:"a",1:"b"},"items":[1,2],"secondName":"s","unknown":{{"x":1}:2}}',
    ],
)
def test_all_forms_give_the_same_bean(text: str) -> None:
    assert bean_reader.decode(text.encode()) == Bean("s", {0: "a", 1: "b"}, [1, 2])


def test_null_members_take_the_default() -> None:
    assert bean_reader.decode(b'{"secondName":"s","byNumber":null,"items":null}') == Bean("s")


def test_what_looks_like_a_key_inside_a_text_stays() -> None:
    text = '{"secondName":"{0:\\",1:2","byNumber":{0:"a,1:b"}}'
    assert bean_reader.decode(text.encode()) == Bean('{0:",1:2', {0: "a,1:b"})


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{}", "Bean: .*secondName"),
        ('{"secondName":1}', r"Bean: .*\$\.secondName"),
        ('{"secondName":"s","items":[1,"x"]}', r"Bean: .*\$\.items\[1\]"),
        ('{"secondName":"s","byNumber":{"x":"a"}}', r"Bean: .*\$\.byNumber"),
        ('{"secondName":"s"', "Bean: .*character 17"),
        ("[]", "Bean: .*object"),
        ("", "Bean: "),
        ("[" * 100_000, "Bean: .*64 levels"),
        ('{"x":' * 100_000, "Bean: nested too deeply"),
    ],
)
def test_typed_errors_name_the_type_and_the_member(text: str, what: str) -> None:
    with pytest.raises(RemoteProtocolError, match=what):
        bean_reader.decode(text.encode())


def test_a_text_without_end_takes_linear_time() -> None:
    """Searching again from each quote of it would take hours."""
    with pytest.raises(RemoteProtocolError, match="expected"):
        bean_reader.decode(b'{"' + b'\\"' * 200_000)


def test_numeric_keys_are_quoted_up_to_the_limit_of_the_reader() -> None:
    text = b'{"secondName":"' + b"s" * MAX_TOLERANT_BYTES + b'","byNumber":{0:"a"}}'
    assert Reader(Bean, "Bean", quoted_bytes_limit=len(text)).decode(text).by_number == {0: "a"}
    with pytest.raises(RemoteProtocolError, match="not standard"):
        bean_reader.decode(text)


def test_pairs_become_an_object_with_object_keys() -> None:
    pairs = loads(b'[[{"q":0,"t":"T"},5],[{"q":1,"t":"T"},6]]')
    assert pairs_to_object(pairs) == {ObjectKey({"q": 0, "t": "T"}): 5, ObjectKey({"q": 1, "t": "T"}): 6}


@pytest.mark.parametrize("value", [None, 1, {"a": 1}, [1], [[1, 2]], [[{}, 1, 2]], [[{"a": [1]}, 2]], [[{"a": {}}, 2]]])
def test_other_values_than_pairs_stay(value: object) -> None:
    assert pairs_to_object(value) == value


# ---- writing


def test_beans_are_sorted_and_null_is_left_out() -> None:
    bean = Bean("s", {1: "b", 0: "a"}, [2, 1])
    assert dumps(bean) == b'{"byNumber":{0:"a",1:"b"},"items":[2,1],"secondName":"s"}'
    assert dumps(bean, standard=True) == b'{"byNumber":{"0":"a","1":"b"},"items":[2,1],"secondName":"s"}'


def test_null_members_of_maps_are_left_out_and_null_items_stay() -> None:
    assert dumps({"a": None, "b": [None, 1]}) == b'{"b":[null,1]}'
    assert dumps({"a": None}) == b"{}"


def test_standard_sorts_maps_and_escapes_what_is_not_ascii() -> None:
    assert dumps({"b": "é😀", "a": 1}, standard=True) == b'{"a":1,"b":"\\u00e9\\ud83d\\ude00"}'
    assert dumps({"b": "é😀", "a": 1}) == '{"b":"é😀","a":1}'.encode()


@pytest.mark.parametrize("key", [ObjectKey({"a": 1}), 1.5])
def test_standard_has_no_room_for_other_keys(key: object) -> None:
    with pytest.raises(LocalProtocolError, match="keys"):
        dumps({key: 1}, standard=True)


def test_numbers() -> None:
    assert dumps([True, False, LanguageCode.CPP, -1]) == b"[true,false,1,-1]"
    assert dumps([1.5, 0.0, 1e300, math.pi]) == b"[1.5,0.0,1e+300,3.141592653589793]"


def test_control_characters_are_escaped() -> None:
    assert dumps('\t\x01"\\/') == b'"\\t\\u0001\\"\\\\/"'


# What fastjson 1.2.69 prints with prettyFormat: it breaks lines before texts, not before other keys.
PRETTY = """{
	"e":{},
	"el":[],
	"l":[
		"x",
		1,
		[],
		[
			2,
			3
		],
		{
			"k":1
		}
	],
	"m":{
		"a":{1:5,2:{
				"q":1
			},3:[
				1,
				2
			]
		},
		"b":[
			{}
		]
	},
	"o":{{
			"brokerName":"b",
			"queueId":0
		}:5,{
			"brokerName":"b",
			"queueId":1
		}:{
			"x":1
		}
	},
	"t":{0:5,1:6
	}
}"""


def test_pretty_is_the_form_of_the_official_files() -> None:
    value = {
        "e": {},
        "el": [],
        "l": ["x", 1, [], [2, 3], {"k": 1}],
        "m": {"a": {1: 5, 2: {"q": 1}, 3: [1, 2]}, "b": [{}]},
        "o": {
            ObjectKey({"brokerName": "b", "queueId": 0}): 5,
            ObjectKey({"brokerName": "b", "queueId": 1}): {"x": 1},
        },
        "t": {1: 6, 0: 5},
    }
    assert dumps(value, pretty=True).decode() == PRETTY


# ---- keys


def test_object_keys_are_equal_by_content() -> None:
    key = ObjectKey({"a": 1, "b": "x"})
    assert key == ObjectKey({"b": "x", "a": 1})
    assert hash(key) == hash(ObjectKey({"b": "x", "a": 1}))
    assert key != ObjectKey({"a": 1})
    assert key != {"a": 1, "b": "x"}
    assert dict(key) == {"a": 1, "b": "x"}
    assert len(key) == 2
    assert repr(key) == "ObjectKey({'a': 1, 'b': 'x'})"
