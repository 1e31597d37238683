"""``pocketmq check DIR``: verify the store directory of a stopped broker, also an official one.

Owns the order of looking and the report. Everything that is said about the log comes from the code that recovery
uses (``Scanner``), everything about the derived files from the code that makes them (``Dispatcher``), so that
the tool and the broker cannot be of two opinions. Looking changes nothing; the directory's lock is held meanwhile.

Exit code: 0 all is good, 1 something is damaged, 2 the directory could not be checked.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import structlog

from protocol.options import OptionError
from store.checkindex import IndexChecker
from store.checkqueues import QueueChecker
from store.checkstate import check_checkpoint, check_offsets, check_tables, configured_topics, known_queues
from store.consumequeue import ConsumeQueues
from store.dispatch import DelayLevels, Dispatcher
from store.engine import MessageStore
from store.errors import StoreError, StoreLocked
from store.files import FileSystem
from store.findings import Findings
from store.index import KeyIndex
from store.logfiles import LogFiles, find_record_in_files
from store.options import StoreOptions
from store.progress import Progress, make_progress
from store.queuefiles import QueueFiles, file_base
from store.queueload import bisect
from store.scan import Scanner

GOOD, DAMAGED, NOT_CHECKED = 0, 1, 2
_SAMPLED_QUEUES = 200
_OPEN_FILES = 64
_END_STEP = 1 << 20


class Report:
    """What one look at a directory gave."""

    def __init__(self) -> None:
        self.findings = Findings()
        self.records = 0
        self.bytes = 0
        self.seconds = 0.0
        self.bad_queues: set[tuple[str, int]] = set()
        self.bad_index = False


def check_main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="pocketmq check",
        description="Verify the store directory of a stopped broker, also of an official one.",
        epilog="Sizes of files are taken from the files; key=value gives what cannot be seen there, such as"
        " maxHashSlotNum, maxIndexNum, messageDelayLevel or storePathCommitLog."
        " Exit code: 0 good, 1 damaged, 2 not checked.",
    )
    parser.add_argument("directory", metavar="DIR", help="the store directory (storePathRootDir)")
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="options of the broker")
    parser.add_argument(
        "--rebuild", action="store_true", help="make damaged consume queues and index again from the commitlog"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress")
    words = parser.parse_intermixed_args(argv)
    progress = make_progress(sys.stderr, quiet=words.quiet)
    fs = FileSystem()
    try:
        options = _options(words.directory, words.overrides, fs)
        report = _locked(options, fs, lambda: look(options, fs, progress))
        progress.close()
        _print(report)
        if words.rebuild and (report.bad_queues or report.bad_index):
            _rebuild(options, fs, report, progress)
            report = _locked(options, fs, lambda: look(options, fs, progress))
            progress.close()
            _print(report)
    except (StoreError, OptionError, OSError) as error:
        progress.close()
        print(f"pocketmq check: {error}", file=sys.stderr)
        return NOT_CHECKED
    return DAMAGED if report.findings.damages else GOOD


# --- what is looked at -----------------------------------------------------------------------------------


def _options(directory: str, overrides: Sequence[str], fs: FileSystem) -> StoreOptions:
    """Options for the directory, with the sizes its files have. StoreError if it is no store."""
    properties = {"storePathRootDir": directory}
    for word in overrides:
        key, equals, value = word.partition("=")
        if not equals or key not in StoreOptions.declared():
            raise StoreError(f"{word}: not a key=value of the store")
        properties[key] = value
    options = StoreOptions.from_properties(properties)
    if fs.stat(directory) is None:
        raise StoreError(f"{directory}: no such directory")
    if fs.stat(options.store_path_commit_log) is None:
        raise StoreError(f"{directory}: not a store directory: there is no {options.store_path_commit_log}")
    if "mappedFileSizeCommitLog" not in properties:
        size = _common_size(options.store_path_commit_log, fs)
        options = replace(options, mapped_file_size_commit_log=size or options.mapped_file_size_commit_log)
    if "mappedFileSizeConsumeQueue" not in properties:
        size = _queue_file_size(f"{directory}/consumequeue", fs)
        options = replace(options, mapped_file_size_consume_queue=size or options.mapped_file_size_consume_queue)
    return options


def _common_size(directory: str, fs: FileSystem) -> int:
    """The distance between two files of a directory by their names, else their length; 0 if there are none."""
    bases = [base for base in map(file_base, fs.listdir(directory)) if base is not None]
    if len(bases) > 1:
        return min(after - before for before, after in pairwise(bases))
    status = fs.stat(f"{directory}/{bases[0]:020d}") if bases else None
    return 0 if status is None else status.size


def _queue_file_size(root: str, fs: FileSystem) -> int:
    """The size that most of the first queues have."""
    sizes: Counter[int] = Counter()
    for topic in fs.listdir(root):
        directory = f"{root}/{topic}"
        status = fs.stat(directory)
        for queue_id in fs.listdir(directory) if status is not None and status.is_directory else ():
            status = fs.stat(f"{directory}/{queue_id}")
            if status is not None and status.is_directory:
                sizes[_common_size(f"{directory}/{queue_id}", fs)] += 1
        if sizes.total() > _SAMPLED_QUEUES:
            break
    del sizes[0]
    return max(sizes, key=lambda size: (sizes[size], size), default=0)


def _locked(options: StoreOptions, fs: FileSystem, work: Callable[[], Report]) -> Report:
    """Do the work while no broker can start here. A directory without a lock file never had one running."""
    path = f"{options.store_path_root_dir}/lock"
    if fs.stat(path) is None:
        return work()
    try:
        fd = fs.lock(path)
    except PermissionError:
        return work()  # not ours to write to: somebody else's copy
    if fd is None:
        raise StoreLocked(f"{path} is held: a broker is running on this directory; stop it first")
    try:
        return work()
    finally:
        fs.unlock(path, fd)


def look(options: StoreOptions, fs: FileSystem, progress: Progress) -> Report:
    """Verify everything. Changes nothing. StoreError, OSError if that is not possible."""
    started = time.monotonic()
    report = Report()
    findings = report.findings
    root = options.store_path_root_dir
    aborted = fs.stat(f"{root}/abort") is not None
    if aborted:
        findings.note(f"{root}/abort", "present: the broker was killed; what the next start repairs is only noted")
    check_tables(root, fs, findings)
    check_checkpoint(root, fs, time.time_ns() // 1_000_000, findings)

    log = LogFiles(options.store_path_commit_log, options.mapped_file_size_commit_log, fs)
    _check_log_files(log, findings)
    log_begin = log.bases[0] if log.bases else 0
    size = options.mapped_file_size_consume_queue
    queues = ConsumeQueues(f"{root}/consumequeue", size, fs, max_open_files=_OPEN_FILES)
    queues.load(log_begin)
    for damage in queues.damages:
        if not (aborted and damage.at_end):
            report.bad_queues.add((damage.topic, damage.queue_id))
            findings.damage(damage.file, damage.reason, None if damage.position < 0 else damage.position)
        else:
            findings.note(damage.file, damage.reason, None if damage.position < 0 else damage.position)
    queue_checker = QueueChecker(
        queues,
        QueueFiles(f"{root}/consumequeue", size, fs, 1),
        findings,
        extended=fs.stat(f"{root}/consumequeue_ext") is not None,
        known=None if aborted else known_queues(root, fs),
    )
    index_checker = _index_checker(options, log_begin, aborted, fs, report, progress)
    dispatcher = Dispatcher(
        queue_checker, index_checker, DelayLevels(options.message_delay_level), log.read, log.file_size
    )
    end = _walk(log, dispatcher, report, aborted, progress)
    queue_checker.finish(log_begin, end, aborted, configured_topics(root, fs))
    report.bad_queues |= queue_checker.bad
    if index_checker is not None:
        index_checker.finish(f"{root}/index", end, aborted)
        report.bad_index |= index_checker.bad
    check_offsets(root, fs, queues, findings)
    queues.close()
    report.seconds = time.monotonic() - started
    return report


def _check_log_files(log: LogFiles, findings: Findings) -> None:
    for path in log.strangers:
        findings.damage(path, "not a commitlog file; an official broker does not start with it")
    for base in log.bases:
        if log.sizes[base] != log.file_size:
            findings.damage(log.path(base), f"{log.sizes[base]} bytes long instead of {log.file_size}")
    for before, after in pairwise(log.bases):
        if after != before + log.file_size:
            findings.damage(log.path(before + log.file_size), "missing between other files")


def _index_checker(
    options: StoreOptions,
    log_begin: int,
    aborted: bool,
    fs: FileSystem,
    report: Report,
    progress: Progress,
) -> IndexChecker | None:
    if not options.message_index_enable:
        return None
    directory = f"{options.store_path_root_dir}/index"
    index = KeyIndex(directory, fs, options.max_hash_slot_num, options.max_index_num)
    index.load()
    for damage in index.damages:
        report.bad_index = True
        report.findings.damage(damage.file, damage.reason)
    return IndexChecker(index, log_begin, aborted, report.findings, progress)


def _walk(log: LogFiles, dispatcher: Dispatcher, report: Report, aborted: bool, progress: Progress) -> int:
    """Every record of the log; returns where the log ends."""
    begin = log.bases[0] if log.bases else 0
    total = _data_end(log) - begin
    at: int | None = begin
    end = begin
    while at is not None:
        scanner = Scanner(log.read, log.file_size, at)
        while records := scanner.next_records():
            for record in records:
                dispatcher.put_record(record)
            report.records += len(records)
            report.bytes = scanner.offset - begin
            progress("reading the commitlog", scanner.offset - begin, total)
        end = scanner.offset
        reason = scanner.stop.reason if scanner.stop is not None else None
        at = _behind(log, end, reason, report.findings, aborted)
    return end


def _data_end(log: LogFiles) -> int:
    """About where the data of the last file ends, for progress: it is written in order."""
    if not log.bases:
        return 0
    base = log.bases[-1]
    fd = log.open.get(log.path(base)).fd
    steps = range(0, log.sizes[base], _END_STEP)
    return base + _END_STEP * bisect(0, len(steps), lambda at: log.fs.next_data(fd, steps[at]) is not None)


def _behind(log: LogFiles, end: int, reason: str | None, findings: Findings, aborted: bool) -> int | None:
    """Where good records go on behind the place at which they stop; None if they do not."""
    rest = log.next_nonzero(end)
    if rest is None:
        return None
    good = find_record_in_files(log, end + 1 if reason is not None else end)
    path, position = log.path(end), end % log.file_size
    why = reason or "a record is missing"
    if good is not None:
        findings.damage(path, f"{why}; good records go on {good - end} bytes further, at log offset {good}", position)
        return good
    text = f"{why}; the log ends here, with something behind it"
    if aborted:
        findings.note(path, f"{text}, which the next start cuts off", position)
    else:
        findings.damage(path, text, position)
    return None


# --- what is done and said -------------------------------------------------------------------------------


def _rebuild(options: StoreOptions, fs: FileSystem, report: Report, progress: Progress) -> None:
    """Delete the damaged derived files; opening the store makes them again, as after any loss of them."""
    structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))
    root = options.store_path_root_dir

    def delete() -> Report:
        queues = ConsumeQueues(f"{root}/consumequeue", options.mapped_file_size_consume_queue, fs)
        for topic, queue_id in sorted(report.bad_queues):
            if queue_id >= 0:
                queues.reset(topic, queue_id)
                print(f"rebuilding consume queue {topic}-{queue_id}")
        queues.close()
        if report.bad_index:
            KeyIndex(f"{root}/index", fs, options.max_hash_slot_num, options.max_index_num).reset()
            print("rebuilding the key index")
        return report

    _locked(options, fs, delete)
    MessageStore.open(options, fs=fs, progress=progress).close()
    progress.close()


def _print(report: Report) -> None:
    findings = report.findings
    for line in findings.lines:
        print(line)
    if findings.left_out:
        print(f"... and {findings.left_out} more findings of the same files")
    rate = f"{report.records / report.seconds:,.0f} records/s, {report.bytes / 1e6 / report.seconds:,.0f} MB/s"
    verdict = f"{findings.damages} damages" if findings.damages else "good"
    print(f"{verdict}: {report.records:,} records, {report.bytes:,} bytes of log checked at {rate}")


__all__ = ["DAMAGED", "GOOD", "NOT_CHECKED", "check_main", "look"]
