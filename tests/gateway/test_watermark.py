"""The waiting primitive: nobody is woken early, nobody is forgotten."""

import trio
from trio.testing import wait_all_tasks_blocked

from gateway.watermark import Watermark


async def test_one_advance_wakes_all_that_it_covers() -> None:
    mark = Watermark(10)
    woken: list[int] = []

    async def wait(offset: int) -> None:
        assert await mark.wait_for(offset)
        woken.append(offset)

    async with trio.open_nursery() as nursery:
        for offset in (30, 12, 20, 31):
            nursery.start_soon(wait, offset)
        await wait_all_tasks_blocked()
        mark.advance(30)
        await wait_all_tasks_blocked()
        assert sorted(woken) == [12, 20, 30]
        assert mark.waiting == 1
        mark.advance(31)


async def test_never_goes_back() -> None:
    mark = Watermark(10)
    mark.advance(5)
    assert mark.offset == 10
    assert await mark.wait_for(10)


async def test_wait_past_wants_more_than_the_offset() -> None:
    mark = Watermark(10)
    with trio.move_on_after(0) as scope:
        await mark.wait_past(10)
    assert scope.cancelled_caught
    mark.advance(11)
    await mark.wait_past(10)


async def test_cancelled_waiter_is_forgotten() -> None:
    mark = Watermark()
    with trio.move_on_after(0):
        await mark.wait_for(5)
    assert mark.waiting == 0


async def test_close_wakes_everybody_and_says_that_it_was_in_vain() -> None:
    mark = Watermark()
    results: list[bool] = []

    async def wait() -> None:
        results.append(await mark.wait_for(5))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        mark.close()
    assert results == [False]
    assert not await mark.wait_for(5)
    assert await mark.wait_for(0)


async def test_calls_back_inside_the_advance_that_passes() -> None:
    mark = Watermark(10)
    seen: list[int] = []

    def again() -> None:
        seen.append(mark.offset)
        mark.when_past(mark.offset, again)

    mark.when_past(10, again)
    assert seen == []
    for offset in (10, 11, 15, 15, 20):
        mark.advance(offset)
    assert seen == [11, 15, 20]


async def test_a_forgotten_callback_is_not_called() -> None:
    mark = Watermark()
    seen: list[int] = []
    waiter = mark.when_past(0, lambda: seen.append(1))
    mark.forget(waiter)
    mark.forget(waiter)
    mark.advance(5)
    assert seen == []
    assert mark.waiting == 0
