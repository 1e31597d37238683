"""Budget: who has held the longest goes first, and nobody who holds little."""

import random

from gateway.budget import COUNTED_BYTES, Budget

MB = 1 << 20


def test_who_has_held_the_longest_goes() -> None:
    budget: Budget[str] = Budget(10 * MB)
    for name in "abc":
        assert budget.hold(name, 3 * MB) == []
    assert budget.hold("d", 3 * MB) == ["a"]
    assert budget.hold("e", 6 * MB) == ["b", "c"]
    assert budget.held_bytes == 9 * MB


def test_growing_is_not_renewing() -> None:
    budget: Budget[str] = Budget(10 * MB)
    budget.hold("slow", 3 * MB)
    budget.hold("other", 3 * MB)
    budget.hold("slow", 4 * MB)
    assert budget.hold("new", 4 * MB) == ["slow"]


def test_who_went_on_meanwhile_stays() -> None:
    budget: Budget[str] = Budget(10 * MB)
    budget.hold("busy", 4 * MB)
    budget.hold("stuck", 4 * MB)
    budget.hold("busy", 4 * MB, renewed=True)
    assert budget.hold("new", 4 * MB) == ["stuck"]


def test_who_asks_too_much_alone_goes_itself() -> None:
    budget: Budget[str] = Budget(10 * MB)
    assert budget.hold("huge", 11 * MB) == ["huge"]
    assert budget.held_bytes == 0


def test_little_is_not_counted() -> None:
    budget: Budget[int] = Budget(MB)
    for number in range(1000):
        assert budget.hold(number, COUNTED_BYTES) == []
    assert budget.held_bytes == 0
    budget.hold(5, MB)
    budget.hold(5, 0)
    assert budget.held_bytes == 0


def test_the_sum_is_right_whatever_happens(seeded_random: random.Random) -> None:
    budget: Budget[int] = Budget(20 * MB)
    held: dict[int, int] = {}
    for _ in range(2000):
        holder = seeded_random.randrange(30)
        size = seeded_random.choice([0, 1000, MB, 3 * MB])
        held[holder] = size if size > COUNTED_BYTES else 0
        for gone in budget.hold(holder, size, renewed=seeded_random.random() < 0.5):
            held[gone] = 0
        assert budget.held_bytes == sum(held.values()) <= 20 * MB
