"""How far a slave is behind its master under load, and how fast it catches up, of two targets side by side.

    python -m tests.bench.replication [--left official] [--right ours] [--rounds 3]

Lag: the benchmark's send load (64 threads, 128 bytes, ASYNC_MASTER); both brokers are asked at the same time, twenty
times a second, where their logs end. In bytes, and in ms of what the master appends. An answer takes a ms or two, so
much is noise in either direction.

Catch-up: the slave is stopped, the master gets a backlog, the slave is started again. In MB/s from the first bytes
that arrive to the last, so that neither a JVM's start nor the pause before an official slave connects counts.
"""

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path
from typing import Any

from tests.bench import run

ASYNC_SLAVE = run.SCENARIOS["async-slave"]
SAMPLE_SECONDS = 0.05


def log_end(port: int) -> int:
    """Where a broker's commitlog ends (GET_BROKER_RUNTIME_INFO)."""
    code, body = run.call(port, 28)
    if code != 0:
        raise OSError(f"the broker on port {port} answers {code}")
    return int(json.loads(body)["table"]["commitLogMaxOffset"])


def client(options: argparse.Namespace, **arguments: Any) -> subprocess.Popen[str]:
    """The official client under load."""
    return subprocess.Popen(
        ["java", "-Xms512m", "-Xmx512m", "-cp", options.classpath, "bench.Bench", f"namesrv=127.0.0.1:{options.base}"]
        + [f"{name}={value}" for name, value in arguments.items()],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def both_ends(master: int, slave: int) -> tuple[int, int]:
    """The ends of both logs at one moment, as far as two questions can be asked at one moment."""
    ends = {}

    def ask(port: int) -> None:
        ends[port] = log_end(port)

    threads = [threading.Thread(target=ask, args=(port,)) for port in (master, slave)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends[master], ends[slave]


def lag(master: int, slave: int, options: argparse.Namespace) -> dict[str, float]:
    """Samples while the client sends."""
    load = client(options, mode="send", threads=64, size=128, warmup=options.warmup, seconds=options.seconds)
    time.sleep(options.warmup + 2)
    samples, begun = [], time.monotonic()
    first = log_end(master)
    while time.monotonic() < begun + options.seconds - 4:
        ends = both_ends(master, slave)
        samples.append(max(0, ends[0] - ends[1]))
        time.sleep(SAMPLE_SECONDS)
    rate = (log_end(master) - first) / (time.monotonic() - begun)
    load.communicate()
    samples.sort()
    p50, p99 = samples[len(samples) // 2], samples[len(samples) * 99 // 100]
    return {
        "MB/s": rate / 1e6,
        "lag p50 KB": p50 / 1e3,
        "lag p99 KB": p99 / 1e3,
        "lag p50 ms": p50 / rate * 1e3,
        "lag p99 ms": p99 / rate * 1e3,
    }


def catch_up(cluster: run.Cluster, target: run.Target, options: argparse.Namespace) -> dict[str, float]:
    """Stops the slave, fills the master, starts the slave and watches it."""
    master, slave = options.base + 20, options.base + 40
    cluster.servers.pop().stop()
    begin = log_end(master)
    while log_end(master) - begin < options.backlog << 20:
        client(options, mode="send", threads=16, size=4096, warmup=0, seconds=5).communicate()
    end = log_end(master)
    settings = cluster.settings("slave", options.base, 40, 1, {"brokerRole": "SLAVE"})
    server = cluster.add(target, "broker", "slave", slave, settings, options)
    started = server.until(lambda: log_end(slave) >= 0, "the slave's start")
    at = start = log_end(slave)
    moved = time.monotonic()
    while at < end:
        now = log_end(slave)
        if now == start:
            moved = time.monotonic()
        at = now
        time.sleep(SAMPLE_SECONDS)
    return {
        "backlog MB": (end - start) / 1e6,
        "catch-up MB/s": (end - start) / 1e6 / (time.monotonic() - moved),
        "start s": started,
        "linked s": moved - server.began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--left", default="official")
    parser.add_argument("--right", default="ours")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=15)
    parser.add_argument("--seconds", type=int, default=15)
    parser.add_argument("--backlog", type=int, default=500, help="MB that the slave has to catch up")
    parser.add_argument("--base", type=int, default=23800, help="first port; up to +41 is used")
    parser.add_argument("--project", default=str(Path.cwd()))
    parser.add_argument("--work", help="folder for the stores (default: the system's for temporary files)")
    options = parser.parse_args(namespace=argparse.Namespace(set={}, bench={}))
    options.targets = tomllib.loads(Path(run.HERE, "targets.toml").read_text())
    run.build(options)
    results: dict[str, list[dict[str, float]]] = {options.left: [], options.right: []}
    for number in range(options.rounds):
        for name in (options.left, options.right) if number % 2 == 0 else (options.right, options.left):
            target = options.targets[name]
            cluster = run.Cluster(target, ASYNC_SLAVE, options)
            try:
                figures = lag(options.base + 20, options.base + 40, options)
                figures |= catch_up(cluster, target, options)
            finally:
                cluster.stop()
            results[name].append(figures)
            print(f"round {number + 1} {name}: {json.dumps(figures)}", file=sys.stderr, flush=True)
    print(f"{'median':<16}{options.left:>12}{options.right:>12}")
    for figure in results[options.left][0]:
        medians = [statistics.median(each[figure] for each in results[name]) for name in (options.left, options.right)]
        print(f"{figure:<16}{medians[0]:>12.2f}{medians[1]:>12.2f}")


if __name__ == "__main__":
    main()
