"""Bytes that are no frames, and frames whose header cannot be read: the connection ends, nothing else does."""

import random
import struct
from collections.abc import Callable

import pytest
import trio

from tests.gateway.hostile.rig import Server, binary_request, framed, request

LIMIT = 16 * 1024 * 1024


def lengths(total: int, header: int) -> bytes:
    return struct.pack(">iI", total, header)


def json_header(text: bytes) -> bytes:
    return framed(text)


def binary_header(remark_length: int, ext_length: int, ext: bytes = b"", code: int = 310) -> bytes:
    fixed = struct.pack(">hBhiii", code, 0, 401, 1, 0, remark_length)
    return framed(fixed + struct.pack(">i", ext_length) + ext, serialization=1)


BROKEN_FRAMES: dict[str, bytes] = {
    "length 0": lengths(0, 0),
    "length 3": lengths(3, 0) + b"abc",
    "length -1": lengths(-1, 0),
    "lowest length": lengths(-(2**31), 0),
    "length above the limit": lengths(LIMIT - 3, 10),
    "highest length": lengths(2**31 - 1, 10),
    "header longer than its frame": lengths(20, 17) + b"x" * 16,
    "header of 16 MiB in a frame of 20 bytes": lengths(20, 0xFFFFFF) + b"x" * 16,
    "header of 2 MiB": framed(b'{"code":34,"extFields":{"a":"' + b"x" * (2 << 20) + b'"}}'),
    "serialization 2": framed(b'{"code":34}', serialization=2),
    "serialization 255": framed(b'{"code":34}', serialization=255),
    "an HTTP request": b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a TLS greeting": bytes.fromhex("16030100f1010000ed0303") + b"\x5a" * 200,
    "no header": lengths(4, 0),
}
BROKEN_JSON: dict[str, bytes] = {
    "nothing": b"",
    "cut off": b'{"code":34,"opaq',
    "not an object": b"[1,2,3]",
    "null": b"null",
    "no code": b'{"opaque":1,"flag":0}',
    "code of a wrong type": b'{"code":{"a":1}}',
    "code as a word": b'{"code":"thirty-four"}',
    "code beyond int": b'{"code":2147483648}',
    "opaque beyond long": b'{"code":34,"opaque":99999999999999999999999}',
    "flag of a wrong type": b'{"code":34,"flag":[]}',
    "language of a wrong type": b'{"code":34,"language":{}}',
    "extFields not an object": b'{"code":34,"extFields":[1]}',
    "a field that is an object": b'{"code":34,"extFields":{"a":{"b":1}}}',
    "a field beyond double": b'{"code":34,"extFields":{"a":1e999}}',
    "two values": b'{"code":34}{"code":34}',
    "NaN": b'{"code":NaN}',
    "not UTF-8": b'{"code":34,"remark":"\xff\xfe"}',
    "a field that is not UTF-8": b'{"code":34,"extFields":{"a":"\xc3\x28"}}',
    "a name that is not UTF-8": b'{"code":34,"extFields":{"\xed\xa0\x80":"a"}}',
    "half a surrogate pair": b'{"code":34,"extFields":{"a":"\\ud800"}}',
    "nested lists": b'{"code":34,"x":' + b"[" * 200_000,
    "nested objects": b'{"code":34,"x":' + b'{"a":' * 100_000,
    "nested fields": b'{"code":34,"extFields":{"a":' + b"[" * 200_000,
}
# The header of the most frequent request takes a way of its own.
BROKEN_JSON |= {f"{name} (send)": text.replace(b'"code":34,', b'"code":310,') for name, text in BROKEN_JSON.items()}
BROKEN_BINARY: dict[str, bytes] = {
    "nothing": framed(b"", serialization=1),
    "cut off": framed(b"\x01\x36\x00\x01", serialization=1),
    "no extFields length": framed(struct.pack(">hBhiii", 34, 0, 401, 1, 0, 0), serialization=1),
    "negative remark": binary_header(-1, 0),
    "remark beyond the header": binary_header(1000, 0),
    "remark of 2 GiB": binary_header(2**31 - 1, 0),
    "negative extFields": binary_header(0, -1),
    "extFields beyond the header": binary_header(0, 1000),
    "extFields of 2 GiB": binary_header(0, 2**31 - 1),
    "negative name": binary_header(0, 10, struct.pack(">h", -5) + b"12345678"),
    "negative value": binary_header(0, 7, struct.pack(">h", 1) + b"a" + struct.pack(">i", -1)),
    "name beyond the block": binary_header(0, 10, struct.pack(">h", 500) + b"12345678"),
    "value beyond the block": binary_header(0, 7, struct.pack(">h", 1) + b"a" + struct.pack(">i", 500)),
    "value of 2 GiB": binary_header(0, 7, struct.pack(">h", 1) + b"a" + struct.pack(">i", 2**31 - 1)),
    "half a length": binary_header(0, 1, b"\x00"),
    "name that is not UTF-8": binary_request(310, [(b"\xff\xfe", b"a")]),
    "value that is not UTF-8": binary_request(310, [(b"b", b"\xff\xfe")]),
    "remark that is not UTF-8": framed(
        struct.pack(">hBhiii", 34, 0, 401, 1, 0, 2) + b"\xff\xfe" + bytes(4), serialization=1
    ),
}
BROKEN = (
    BROKEN_FRAMES
    | {f"JSON: {name}": framed(text) for name, text in BROKEN_JSON.items()}
    | {f"ROCKETMQ: {name}": data for name, data in BROKEN_BINARY.items()}
)


async def test_each_broken_frame_ends_its_own_connection(server: Server) -> None:
    for name, data in BROKEN.items():
        async with server.client() as client:
            await client.send(data + b"\x00" * 8)
            assert await client.closed_by_server(), name
        await server.more_turns(1)


async def test_requests_before_a_broken_frame_are_answered(server: Server) -> None:
    for name, data in BROKEN.items():
        async with server.client() as client:
            await client.send(request(9999, opaque=77) + data + b"\x00" * 8)
            answer = await client.answer()
            assert (answer.code, answer.opaque) == (3, 77), name
            assert await client.closed_by_server(), name


async def test_random_bytes(server: Server, seeded_random: random.Random) -> None:
    for _ in range(100):
        async with server.client() as client:
            await client.send(seeded_random.randbytes(seeded_random.randrange(1, 2000)))
            await client.stream.send_eof()
            while await client.answer_or_end() is not None:
                pass


async def test_random_bytes_in_correct_frames(server: Server, seeded_random: random.Random) -> None:
    for serialization in (0, 1):
        for _ in range(50):
            data = framed(
                seeded_random.randbytes(seeded_random.randrange(60)),
                seeded_random.randbytes(seeded_random.randrange(60)),
                serialization=serialization,
            )
            async with server.client() as client:
                await client.send(data)
                await client.stream.send_eof()
                while await client.answer_or_end() is not None:
                    pass


@pytest.mark.parametrize("make", [request, binary_request], ids=["JSON", "ROCKETMQ"])
async def test_a_request_that_comes_in_single_bytes_is_answered(server: Server, make: Callable[..., bytes]) -> None:
    async with server.client() as client:
        for byte in make(9999, opaque=5):
            await client.send(bytes([byte]))
            await trio.lowlevel.checkpoint()
        answer = await client.answer()
        assert (answer.code, answer.opaque) == (3, 5)


async def test_unknown_codes_are_answered_in_either_serialization(server: Server) -> None:
    served = {code for routes in server.routes for code in (*routes.handlers, *routes.batch_handlers)}
    async with server.client() as client:
        for code in {0, -1, 9, 777, 32767, -32768} - served:
            for data in (request(code, opaque=code), binary_request(code, opaque=code)):
                await client.send(data)
                answer = await client.answer()
                assert (answer.code, answer.opaque) == (3, code)
                assert answer.remark == f" request type {code} not supported"
        for code in (200_050, 2**31 - 1, -(2**31)):
            assert (await client.ask(code)).code == 3


async def test_answers_that_nobody_asked_for_are_dropped(server: Server) -> None:
    async with server.client() as client:
        for opaque in (-(2**31), -1, 0, 1, 2, 2**31 - 1):
            for flag in (1, 3):
                await client.send(request(0, {"offset": "1"}, b"body", opaque=opaque, flag=flag))
                await client.send(binary_request(105, opaque=opaque, flag=flag))
        assert await client.is_served()


async def test_a_frame_of_the_greatest_length_is_read(server: Server) -> None:
    async with server.client() as client:
        head = request(9999, opaque=3)
        body = b"x" * (LIMIT - len(head))
        await client.send(request(9999, body=body, opaque=3))
        answer = await client.answer()
        assert (answer.code, answer.opaque) == (3, 3)
