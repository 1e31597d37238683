"""Header fields that are missing or no numbers: the request is refused with a remark that names the field."""

from tests.gateway.hostile.rig import ONE_WAY, Server, binary_request, request
from tests.gateway.hostile.samples import samples

NO_NUMBERS = ("three", "1.5", "0x10", "--1", " ", "\x00", "1 000", "٣", "9" * 30, "-" + "9" * 30, "9" * 10_000)
REFUSED = 1


async def test_each_missing_field_is_named(server: Server) -> None:
    count = 0
    async with server.client() as client:
        for each in samples(server):
            for name in each.fields:
                fields = {other: value for other, value in each.fields.items() if other != name}
                answer = await client.ask(each.code, fields)
                assert answer.code == REFUSED, f"{each} without {name}: {answer}"
                assert f"`{name}`" in (answer.remark or ""), f"{each} without {name}: {answer}"
                count += 1
    assert count > 20


async def test_each_field_that_is_no_number_is_named(server: Server) -> None:
    count = 0
    async with server.client() as client:
        for each in samples(server):
            for field in each.declared:
                if field.kind is not int:
                    continue
                for text in NO_NUMBERS:
                    answer = await client.ask(each.code, each.fields | {field.name: text})
                    assert answer.code == REFUSED, f"{each} with {field.name}={text!r}: {answer}"
                    assert field.name in (answer.remark or ""), f"{each} with {field.name}={text!r}: {answer}"
                    assert len(answer.remark or "") < 5000
                    count += 1
    assert count >= len(NO_NUMBERS)


async def test_the_binary_header_is_checked_as_well(server: Server) -> None:
    async with server.client() as client:
        for each in samples(server):
            for name in each.fields:
                others = [(key.encode(), value.encode()) for key, value in each.fields.items() if key != name]
                for extra in ([], [(name.encode(), b"")]):  # an empty value is an absent one
                    await client.send(binary_request(each.code, others + extra))
                    answer = await client.answer()
                    assert answer.code == REFUSED, f"{each} without {name}: {answer}"
                    assert f"`{name}`" in (answer.remark or ""), f"{each} without {name}: {answer}"


async def test_wrong_requests_that_are_one_way_are_not_answered(server: Server) -> None:
    async with server.client() as client:
        for each in samples(server):
            await client.send(request(each.code, {}, flag=ONE_WAY, opaque=5))
            await client.send(request(each.code, dict.fromkeys(each.fields, "\x00"), b"{", flag=ONE_WAY, opaque=5))
            await client.send(request(each.code, each.fields, b"\xff[[[", flag=ONE_WAY, opaque=5))
        await client.send(request(9999, flag=ONE_WAY, opaque=5))
        await client.send(request(9999, opaque=6))
        answer = await client.answer()
        while not answer.flag & 1:  # the server's own questions
            answer = await client.answer()
        assert answer.opaque == 6
