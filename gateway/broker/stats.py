"""BrokerStats: the sums and rates that GET_BROKER_RUNTIME_INFO answers, in the windows that RocketMQ's tools expect.

Handlers count by verb; `sample` is called once a second and keeps eleven minutes of sums, from which the rates of the
last 10, 60 and 600 seconds come. Totals "of this morning" and "of yesterday morning" are the sums at the last two
local midnights, as official's BrokerStats records them. Everything starts at 0 with the process.
"""

from collections import deque
from collections.abc import Callable
from datetime import date, datetime
from typing import NamedTuple

from gateway.broker.puttimes import PutTimes
from store.engine import Arrivals

WINDOWS_S = (10, 60, 600)
_KEPT_SAMPLES = max(WINDOWS_S) + 1


class Sums(NamedTuple):
    """What has been counted since the start; `taken_ms` says when it was looked at."""

    taken_ms: int
    stored: int = 0
    found_pulls: int = 0
    missed_pulls: int = 0
    delivered: int = 0


class BrokerStats:
    """Counters of one broker; `now_ms` is the clock."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self.started_ms = now_ms()
        self.stored = 0
        self.stored_bytes = 0
        self.failed = 0
        self.found_pulls = 0
        self.missed_pulls = 0
        self.delivered = 0
        self.longest_read_ms = 0
        self.put_times = PutTimes()
        self._seconds = 0
        self._samples: deque[Sums] = deque([self._sums()], maxlen=_KEPT_SAMPLES)
        self._day = self._today()
        self.stored_this_morning = self.stored_yesterday_morning = 0
        self.delivered_this_morning = self.delivered_yesterday_morning = 0

    # ---- counting

    def messages_stored(self, count: int, size: int) -> None:
        """`count` messages of `size` bytes together went into the log."""
        self.stored += count
        self.stored_bytes += size

    def messages_replicated(self, messages: Arrivals) -> None:
        """These came from the master; a slave counts them as stored, as official 4.9.4 does."""
        self.messages_stored(messages.count, messages.size)

    def messages_failed(self, count: int) -> None:
        """`count` messages could not be stored."""
        self.failed += count

    def pull_answered(self, delivered: int) -> None:
        """One pull was answered with `delivered` messages."""
        if delivered:
            self.found_pulls += 1
            self.delivered += delivered
        else:
            self.missed_pulls += 1

    def read_took(self, seconds: float) -> None:
        """One pull's look into the log."""
        milliseconds = int(seconds * 1000)
        if milliseconds > self.longest_read_ms:
            self.longest_read_ms = milliseconds

    def sample(self) -> None:
        """Takes the sums for the rates, and notes midnight; call it once a second."""
        self._samples.append(self._sums())
        self._seconds += 1
        if self._seconds % 60 == 0:
            self.put_times.turn()
        today = self._today()
        if today != self._day:
            self._day = today
            self.stored_yesterday_morning, self.stored_this_morning = self.stored_this_morning, self.stored
            self.delivered_yesterday_morning = self.delivered_this_morning
            self.delivered_this_morning = self.delivered

    # ---- answers

    def stored_rates(self) -> str:
        """Messages stored per second over 10, 60 and 600 s, as tools read it: three numbers with blanks between."""
        return self._rates(lambda sums: sums.stored)

    def found_rates(self) -> str:
        """Pulls per second that found messages."""
        return self._rates(lambda sums: sums.found_pulls)

    def missed_rates(self) -> str:
        """Pulls per second that found nothing."""
        return self._rates(lambda sums: sums.missed_pulls)

    def pull_rates(self) -> str:
        """Pulls per second."""
        return self._rates(lambda sums: sums.found_pulls + sums.missed_pulls)

    def delivered_rates(self) -> str:
        """Messages handed out per second."""
        return self._rates(lambda sums: sums.delivered)

    def _rates(self, value: Callable[[Sums], int]) -> str:
        newest = self._samples[-1]
        rates = []
        for window in WINDOWS_S:
            oldest = self._samples[max(0, len(self._samples) - 1 - window)]
            elapsed_s = (newest.taken_ms - oldest.taken_ms) / 1000
            rates.append((value(newest) - value(oldest)) / elapsed_s if elapsed_s > 0 else 0.0)
        return " ".join(str(rate) for rate in rates)

    def _sums(self) -> Sums:
        return Sums(self._now_ms(), self.stored, self.found_pulls, self.missed_pulls, self.delivered)

    def _today(self) -> date:
        return datetime.fromtimestamp(self._now_ms() / 1000).date()
