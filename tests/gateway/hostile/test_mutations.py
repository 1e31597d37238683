"""What official programs sent, damaged at random: each server takes all of it and goes on."""

import random
import struct
from collections.abc import Callable
from pathlib import Path

from tests.gateway.hostile.rig import Server, framed

WIRE = Path(__file__).parents[2] / "data" / "wire"

ROUNDS = 400


def golden() -> list[bytes]:
    """All recorded requests, each once."""
    frames = {path.read_bytes() for path in sorted(WIRE.rglob("*.request.bin"))}
    assert len(frames) > 100
    return sorted(frames)


def parts(frame: bytes) -> tuple[int, bytes, bytes]:
    """Serialization, header and body."""
    (word,) = struct.unpack_from(">I", frame, 4)
    end = 8 + (word & 0xFFFFFF)
    return word >> 24, frame[8:end], frame[end:]


def flipped(data: bytes, rng: random.Random) -> bytes:
    """A few bits are other ones."""
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 4) if data else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwritten(data: bytes, rng: random.Random) -> bytes:
    """A stretch is random, or all alike."""
    begin = rng.randrange(len(data) + 1)
    size = rng.randrange(1, 9)
    stretch = rng.choice([rng.randbytes(size), b"\xff" * size, bytes(size), b"9" * size, b"[" * size, b'"' * size])
    return data[:begin] + stretch + data[begin + size :]


def cut(data: bytes, rng: random.Random) -> bytes:
    """A stretch is missing, or there twice."""
    begin, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:begin] + data[end:] if rng.random() < 0.5 else data[:end] + data[begin:]


def digits(data: bytes, rng: random.Random) -> bytes:
    """A digit is another one, a sign, or many."""
    places = [at for at, byte in enumerate(data) if 48 <= byte <= 57]
    if not places:
        return flipped(data, rng)
    at = rng.choice(places)
    return data[:at] + rng.choice([b"-1", b"9", b"", b"99999999999", b"9" * 40, b"x"]) + data[at + 1 :]


DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (flipped, overwritten, cut, digits)


def damaged(frame: bytes, rng: random.Random) -> bytes:
    """The frame with one damage: anywhere, or in header or body under lengths that are right again."""
    damage = rng.choice(DAMAGES)
    where = rng.randrange(3)
    if where == 0:
        return damage(frame, rng)
    serialization, header, body = parts(frame)
    if where == 1:
        return framed(damage(header, rng), body, serialization=serialization)
    return framed(header, damage(body, rng), serialization=serialization)


async def test_damaged_requests_of_official_programs(server: Server, seeded_random: random.Random) -> None:
    frames = golden()
    for _ in range(ROUNDS):
        data = b"".join(damaged(frame, seeded_random) for frame in seeded_random.sample(frames, 3))
        async with server.client() as client:
            await client.send(data)
            await client.stream.send_eof()
            while await client.answer_or_end() is not None:
                pass


async def test_recorded_requests_in_any_order(server: Server, seeded_random: random.Random) -> None:
    """Undamaged, but to the wrong server, twice, and without what should have come before."""
    frames = golden() * 2
    seeded_random.shuffle(frames)
    async with server.client() as client:
        await client.send(b"".join(frames))
        await client.stream.send_eof()
        while await client.answer_or_end() is not None:
            pass


async def test_recorded_answers_are_nobody_s(server: Server) -> None:
    answers = [path.read_bytes() for path in sorted(WIRE.rglob("*.response.bin"))]
    assert len(answers) > 100
    async with server.client() as client:
        await client.send(b"".join(answers))
        assert await client.is_served()
