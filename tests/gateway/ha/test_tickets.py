"""Tickets: good once, for a short time, and never many."""

from gateway.ha.tickets import GOOD_FOR_SECONDS, LIMIT, Join, Tickets

JOIN = Join(1, "slave", 100)


def test_a_ticket_is_good_once() -> None:
    tickets = Tickets()
    ticket = tickets.issue(JOIN, 0.0)
    assert ticket < 0
    assert tickets.redeem(ticket, 1.0) == JOIN
    assert tickets.redeem(ticket, 1.0) is None


def test_a_ticket_is_good_for_a_while_only() -> None:
    tickets = Tickets()
    assert tickets.redeem(tickets.issue(JOIN, 0.0), GOOD_FOR_SECONDS) == JOIN
    assert tickets.redeem(tickets.issue(JOIN, 0.0), GOOD_FOR_SECONDS + 1) is None


def test_an_invented_ticket_is_worth_nothing() -> None:
    assert Tickets().redeem(-5, 0.0) is None


def test_the_oldest_goes_when_there_are_too_many() -> None:
    tickets = Tickets()
    issued = [tickets.issue(JOIN, 0.0) for _ in range(LIMIT + 1)]
    assert tickets.redeem(issued[0], 0.0) is None
    assert all(tickets.redeem(ticket, 0.0) for ticket in issued[1:])
