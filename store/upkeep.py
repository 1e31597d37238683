"""What has to be done now and then: space ahead, derived files to disk, the checkpoint.

Owns when which of these is due, and the order in which things become safe: first the log, then what is derived from
it, then the checkpoint that vouches for both. A round that reaches the checkpoint takes as long as the number of
queues demands; the pause before the next one grows with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog

from store.checkpoint import Checkpoint, CheckpointFile, Times, Vouched
from store.commitlog import CommitLog
from store.consumequeue import ConsumeQueues, QueueFlush
from store.dispatch import Dispatcher
from store.errors import StoreError
from store.flush import Flusher
from store.options import StoreOptions

log = structlog.get_logger(__name__)

ROUND_PAUSE_MS: Final = 5000
ROUND_PAUSE_FACTOR: Final = 20


class MaintainJob:
    """Steps that may wait for the disk; ``run`` in any thread, then ``Upkeep.finish``."""

    __slots__ = ("error", "queue_flush", "steps")

    def __init__(self) -> None:
        self.steps: list[Callable[[], object]] = []
        self.queue_flush: QueueFlush | None = None
        self.error: StoreError | None = None

    def run(self) -> None:
        """Never raises: what failed is in ``error``."""
        try:
            for step in self.steps:
                step()
        except OSError as error:
            self.error = StoreError(f"{error.filename or 'store'}: {error.strerror or error}")
        except StoreError as error:
            self.error = error


class Upkeep:
    """The upkeep of one store."""

    def __init__(
        self,
        options: StoreOptions,
        commit_log: CommitLog,
        queues: ConsumeQueues,
        flusher: Flusher,
        dispatcher: Dispatcher,
        checkpoint: CheckpointFile,
    ) -> None:
        self._log = commit_log
        self._queues = queues
        self._flusher = flusher
        self._dispatcher = dispatcher
        self._checkpoint = checkpoint
        self._thorough_ms = options.flush_consume_queue_thorough_interval
        self._derived_error: str | None = None

    def derived_failed(self, error: StoreError) -> None:
        """Consume queues or index could not be written; they are repeated, and sends refused if it lasts."""
        if self._derived_error is None:
            log.error("derived_files_failed", reason=str(error))
        self._derived_error = str(error)

    def refusal(self) -> str | None:
        """Why messages cannot be taken now, if so."""
        if self._queues.over_limit:
            return self._derived_error or "consume queues cannot be written"
        return None

    def begin(self, now_ms: int) -> MaintainJob | None:
        job = MaintainJob()
        job.steps.append(self._log.reserve_ahead)
        return job

    def finish(self, job: MaintainJob) -> None:
        if job.error is not None:
            log.warning("upkeep_failed", reason=str(job.error))

    def close(self) -> None:
        """Everything safe, and a checkpoint that says so. StoreError, OSError."""
        self._queues.flush()
        offset = self._log.end_offset
        times = Times()
        self._checkpoint.write(Checkpoint(times, Vouched(offset, -1, True)))
