#!/usr/bin/env python3
"""Measures two targets side by side: each scenario in rounds, the targets by turns, everything started anew each time.

    run.py [--left official] [--right ours] [--rounds 3] [SCENARIO …]

README.md tells what the scenarios are and how the figures are to be read.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
CACHE = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pocketmq-bench")

# name: what Bench gets, the broker's settings, the slave's if there is one, the figure that counts, better when higher
SCENARIOS: dict[str, dict[str, Any]] = {
    "send": dict(bench="mode=send threads=64 size=128", figure="throughput"),
    "send-4k": dict(bench="mode=send threads=64 size=4096", figure="throughput"),
    "send-binary": dict(bench="mode=send threads=64 size=128 header=ROCKETMQ", figure="throughput"),
    "async": dict(bench="mode=async threads=2 size=128", figure="throughput"),
    "oneway": dict(bench="mode=oneway threads=4 size=128", figure="throughput"),
    "batch": dict(bench="mode=batch threads=16 size=128", figure="throughput"),
    "latency": dict(
        bench="mode=latency size=128",
        figure="p50",
        lower=True,
        also=("p99", "p999", "throughp50", "throughp99", "throughp999"),
    ),
    "sync-flush": dict(bench="mode=send threads=64 size=128", broker="flushDiskType=SYNC_FLUSH", figure="throughput"),
    "async-slave": dict(
        bench="mode=send threads=64 size=128", broker="brokerRole=ASYNC_MASTER", slave=True, figure="throughput"
    ),
    "sync-slave": dict(
        bench="mode=send threads=64 size=128", broker="brokerRole=SYNC_MASTER", slave=True, figure="throughput"
    ),
    "consume": dict(bench="mode=consume size=128", figure="throughput"),
    "topics-1000": dict(bench="mode=send threads=64 size=128 topics=1000 queues=8", figure="throughput"),
    "footprint": dict(bench="mode=send threads=64 size=128", figure="rss", lower=True, also=("anon", "startup")),
    "idle": dict(idle=True, figure="rss", lower=True, also=("anon", "startup")),
}


Target = dict[str, Any]
Scenario = dict[str, Any]
Run = dict[str, Any]
Results = dict[str, tuple[list[Run], list[Run]]]

# ---- processes


def members(session: int) -> Iterator[tuple[int, list[str]]]:
    """The pids of a session, without zombies."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                fields = pathlib.Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] not in "ZX":
                    yield int(entry), fields


def usage(session: int) -> tuple[float, float, float]:
    """CPU seconds, VmRSS and RssAnon in MiB of all processes of a session."""
    cpu = rss = anonymous = 0.0
    for pid, fields in members(session):
        cpu += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        with contextlib.suppress(OSError):
            sizes = dict(
                re.findall(r"^(VmRSS|RssAnon):\s+(\d+) kB", pathlib.Path(f"/proc/{pid}/status").read_text(), re.M)
            )
            rss += int(sizes.get("VmRSS", 0)) / 1024
            anonymous += int(sizes.get("RssAnon", 0)) / 1024
    return cpu, rss, anonymous


class Server:
    def __init__(
        self, target: Target, role: str, folder: str, port: int, settings: dict[str, Any], options: argparse.Namespace
    ) -> None:
        self.folder, self.port = folder, port
        os.makedirs(os.path.join(folder, "home", "conf"), exist_ok=True)
        for name in ("namesrv", "broker"):  # the official start-up wants both files
            with open(os.path.join(folder, "home", "conf", f"logback_{name}.xml"), "w") as file:
                file.write('<configuration><root level="OFF"/></configuration>\n')
        config = os.path.join(folder, f"{role}.properties")
        with open(config, "w") as file:
            file.writelines(f"{key}={value}\n" for key, value in settings.items())
        command = target[role].format_map(
            {
                **target.get("set", {}),
                **options.set,
                "dir": folder,
                "config": config,
                "port": port,
                "project": options.project,
                "official_lib": options.official_lib,
            }
        )
        self.began = time.monotonic()
        with open(os.path.join(folder, "out"), "wb") as out:
            self.process = subprocess.Popen(
                shlex.split(command),
                cwd=folder,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    "ROCKETMQ_HOME": os.path.join(folder, "home"),
                    "JAVA_TOOL_OPTIONS": f"-Duser.home={folder} -XX:-UsePerfData",
                },
            )

    def until(self, ready: Callable[[], bool], what: str, limit: float = 60) -> float:
        while time.monotonic() < self.began + limit:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError, ValueError, KeyError, struct.error):
                if ready():
                    return time.monotonic() - self.began
            time.sleep(0.01)
        tail = pathlib.Path(self.folder, "out").read_text(errors="replace")[-1500:]
        raise SystemExit(f"{self.folder}: {what} did not happen; its output ends with\n{tail}")

    def stop(self) -> None:
        for how, limit in ((signal.SIGTERM, 20), (signal.SIGKILL, 10)):
            if not any(True for _ in members(self.process.pid)):
                break
            with contextlib.suppress(ProcessLookupError):
                if how == signal.SIGTERM:
                    os.kill(self.process.pid, how)
                else:
                    os.killpg(self.process.pid, how)
            until = time.monotonic() + limit
            while time.monotonic() < until and any(True for _ in members(self.process.pid)):
                self.process.poll()
                time.sleep(0.05)
        self.process.wait()


def exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise OSError("closed")
        data += part
    return data


def call(port: int, code: int, fields: dict[str, Any] | None = None, body: bytes = b"") -> tuple[int, bytes]:
    """(code, body) of a remoting request's answer."""
    header = json.dumps(
        {
            "code": code,
            "flag": 0,
            "language": "OTHER",
            "opaque": 1,
            "version": 399,
            "extFields": {key: str(value) for key, value in (fields or {}).items()},
        }
    ).encode()
    with socket.create_connection(("127.0.0.1", port), 2) as sock:
        sock.settimeout(5)
        sock.sendall(struct.pack(">ii", 4 + len(header) + len(body), len(header)) + header + body)
        (total,) = struct.unpack(">i", exactly(sock, 4))
        data = exactly(sock, total)
    size = struct.unpack(">i", data[:4])[0] & 0xFFFFFF
    return json.loads(data[4 : 4 + size])["code"], data[4 + size :]


def first_send(port: int) -> bool:
    fields = {
        "producerGroup": "start",
        "topic": "start",
        "defaultTopic": "TBW102",
        "defaultTopicQueueNums": 1,
        "queueId": 0,
        "sysFlag": 0,
        "bornTimestamp": int(time.time() * 1000),
        "flag": 0,
        "properties": "",
        "reconsumeTimes": 0,
        "unitMode": "false",
        "batch": "false",
    }
    return call(port, 10, fields, b"first")[0] in (0, 10, 11, 12)  # stored; 10-12: not flushed or replicated yet


class Cluster:
    """A name server, a broker and maybe a slave of one target."""

    def __init__(self, target: Target, scenario: Scenario, options: argparse.Namespace) -> None:
        self.folder = tempfile.mkdtemp(prefix="rocketmq-bench-", dir=options.work)
        self.servers: list[Server] = []
        try:
            base = options.base
            self.namesrv = self.add(
                target,
                "namesrv",
                "namesrv",
                base,
                {"listenPort": base, "kvConfigPath": os.path.join(self.folder, "namesrv", "kv.json")},
                options,
            )
            self.namesrv.until(lambda: call(base, 206)[0] == 0, "the name server's start")
            extra = dict(pair.split("=", 1) for pair in scenario.get("broker", "").split())
            self.broker = self.add(
                target, "broker", "broker", base + 20, self.settings("broker", base, 20, 0, extra), options
            )
            self.startup = self.broker.until(lambda: first_send(base + 20), "the broker's first send")
            listed = [b"broker-a"]
            if scenario.get("slave"):
                slave = self.add(
                    target,
                    "broker",
                    "slave",
                    base + 40,
                    self.settings("slave", base, 40, 1, {"brokerRole": "SLAVE"}),
                    options,
                )
                listed.append(f"127.0.0.1:{base + 40}".encode())
                slave.until(lambda: all(mark in call(base, 106)[1] for mark in listed), "the slave's registration")
                time.sleep(8)  # the official slave looks for its master every 5 s
            else:
                self.broker.until(
                    lambda: all(mark in call(base, 106)[1] for mark in listed), "the broker's registration"
                )
        except BaseException:
            self.stop()
            raise

    def settings(self, name: str, base: int, plus: int, broker_id: int, extra: dict[str, Any]) -> dict[str, Any]:
        store = os.path.join(self.folder, name, "store")
        return {
            "brokerClusterName": "DefaultCluster",
            "brokerName": "broker-a",
            "brokerId": broker_id,
            "brokerIP1": "127.0.0.1",
            "brokerIP2": "127.0.0.1",
            "listenPort": base + plus,
            "haListenPort": base + plus + 1,
            "namesrvAddr": f"127.0.0.1:{base}",
            "storePathRootDir": store,
            "storePathCommitLog": os.path.join(store, "commitlog"),
            "autoCreateTopicEnable": "true",
            "brokerRole": "ASYNC_MASTER",
            "flushDiskType": "ASYNC_FLUSH",
            **extra,
        }

    def add(
        self, target: Target, role: str, name: str, port: int, settings: dict[str, Any], options: argparse.Namespace
    ) -> Server:
        self.servers.append(Server(target, role, os.path.join(self.folder, name), port, settings, options))
        return self.servers[-1]

    def stop(self) -> None:
        for server in reversed(self.servers):
            server.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


# ---- measuring


def build(options: argparse.Namespace) -> None:
    """Compiles the client and fetches jars, once."""

    def maven(pom: str, out: str, *goals: str) -> None:
        done = subprocess.run(
            ["mvn", "-B", "-q", "-f", os.path.join(HERE, pom), *goals],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            raise SystemExit(f"mvn {pom}: {(done.stdout + done.stderr)[-1500:]}")
        open(os.path.join(out, ".complete"), "w").close()

    out = os.path.join(CACHE, "bench")
    sources = [os.path.join(folder, name) for folder, _, names in os.walk(os.path.join(HERE, "src")) for name in names]
    stamp = os.path.join(out, ".complete")
    if not os.path.exists(stamp) or os.path.getmtime(stamp) < max(map(os.path.getmtime, sources)):
        maven(
            "pom.xml",
            out,
            f"-Dbench.out={out}",
            "package",
            "dependency:copy-dependencies",
            f"-DoutputDirectory={out}/lib",
        )
    options.classpath = f"{out}/classes:{out}/lib/*"
    options.official_lib = os.path.join(CACHE, "official-4.9.4")
    if any("{official_lib}" in target["broker"] for target in options.targets.values()) and not os.path.exists(
        os.path.join(options.official_lib, ".complete")
    ):
        maven(
            "official/pom.xml",
            options.official_lib,
            "dependency:copy-dependencies",
            "-DincludeScope=runtime",
            f"-DoutputDirectory={options.official_lib}",
        )


def measure(target: Target, scenario: Scenario, options: argparse.Namespace) -> Run:
    cluster = Cluster(target, scenario, options)
    try:
        if scenario.get("idle"):
            time.sleep(options.seconds)
            figures: Run = {"failures": 0}
            cpu = 0.0
        else:
            before = usage(cluster.broker.process.pid)[0]
            arguments = dict(pair.split("=") for pair in scenario["bench"].split())
            arguments.update(
                namesrv=f"127.0.0.1:{options.base}",
                warmup=options.warmup,
                seconds=options.seconds,
                backlog=options.backlog,
                **options.bench,
            )
            done = subprocess.run(
                [
                    "java",
                    "-Xms512m",
                    "-Xmx512m",
                    "-XX:-UsePerfData",
                    f"-Djava.io.tmpdir={cluster.folder}",
                    "-cp",
                    options.classpath,
                    "bench.Bench",
                    *(f"{k}={v}" for k, v in arguments.items()),
                ],
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                timeout=options.limit,
            )
            try:
                figures = json.loads(done.stdout.strip().splitlines()[-1])
            except (IndexError, ValueError):
                raise SystemExit(f"the client gave no figures: {(done.stdout + done.stderr)[-1500:]}") from None
            cpu = usage(cluster.broker.process.pid)[0] - before
        figures["startup"] = cluster.startup
        _, figures["rss"], figures["anon"] = usage(cluster.broker.process.pid)
        if figures.get("throughput") and "bench" in scenario and "mode=send" in scenario["bench"]:
            # the warm-up costs CPU as well, at a rate that only grows: an upper bound that both targets share
            figures["cpu"] = cpu / (figures["throughput"] * (options.seconds + options.warmup)) * 1e6
        return figures
    finally:
        cluster.stop()


def median(runs: Sequence[Run], figure: str) -> float | None:
    values = [run[figure] for run in runs if figure in run]
    return statistics.median(values) if values else None


def ratio(
    name: str, left: Sequence[Run], right: Sequence[Run], figure: str | None = None, lower: bool | None = None
) -> float:
    """How many times better the right target is."""
    figure = figure or SCENARIOS[name]["figure"]
    lower = SCENARIOS[name].get("lower") if lower is None else lower
    a, b = median(left, figure), median(right, figure)
    if not a or not b:
        return 0.0
    return a / b if lower else b / a


def spread(runs: Sequence[Run], figure: str) -> float:
    values = [run[figure] for run in runs if figure in run]
    return 100 * (max(values) - min(values)) / statistics.median(values) if values and statistics.median(values) else 0


def table(results: Results, options: argparse.Namespace) -> str:
    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:,.{2 if value < 100 else 0}f}"

    rows = [
        [
            "scenario",
            "figure",
            options.left,
            options.right,
            "better by",
            "spread %",
            "cpu s/M",
            "VmRSS MiB",
            "RssAnon MiB",
            "start s",
            "failures",
        ]
    ]
    for name, (left, right) in results.items():
        figure = SCENARIOS[name]["figure"]
        for number, key in enumerate((figure, *SCENARIOS[name].get("also", ()))):
            lower = key != "throughput"
            row = [
                name if not number else "",
                key,
                cell(median(left, key)),
                cell(median(right, key)),
                f"{ratio(name, left, right, key, lower):.2f}",
                f"{spread(left, key):.0f} / {spread(right, key):.0f}",
            ]
            if not number:
                row += [
                    f"{cell(median(left, k))} / {cell(median(right, k))}" for k in ("cpu", "rss", "anon", "startup")
                ]
                row.append(f"{sum(run['failures'] for run in left)} / {sum(run['failures'] for run in right)}")
            rows.append(row + [""] * (len(rows[0]) - len(row)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            value.ljust(width) if i < 2 else value.rjust(width)
            for i, (value, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "scenarios", nargs="*", metavar="SCENARIO", help=f"of {', '.join(SCENARIOS)}; all when none is named"
    )
    parser.add_argument(
        "--targets", default=os.path.join(HERE, "targets.toml"), help="TOML or JSON with the targets' commands"
    )
    parser.add_argument("--left", default="official")
    parser.add_argument("--right", default="ours")
    parser.add_argument(
        "--right-only", action="append", default=[], metavar="SCENARIO", help="measured on the right target alone"
    )
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="for the commands' {NAME}")
    parser.add_argument(
        "--bench", action="append", default=[], metavar="NAME=VALUE", help="one more option for the client"
    )
    parser.add_argument("--project", default=os.getcwd())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=15)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--backlog", type=int, default=1_000_000)
    parser.add_argument("--limit", type=int, default=400, help="longest time for one run of the client")
    parser.add_argument("--base", type=int, default=23800, help="first port; up to +41 is used")
    parser.add_argument("--work", help="folder for the stores (default: the system's for temporary files)")
    parser.add_argument("--json", help="file for every figure of every run")
    parser.add_argument(
        "--at-least",
        action="append",
        default=[],
        metavar="SCENARIO[.FIGURE]=RATIO",
        help="exit 1 unless the right target is that many times better",
    )
    parser.add_argument(
        "--relation",
        action="append",
        default=[],
        metavar="SCENARIO/SCENARIO=RATIO",
        help="exit 1 unless the right target's one figure is that many times its other",
    )
    options = parser.parse_args()
    with open(options.targets, "rb") as file:
        options.targets = json.load(file) if options.targets.endswith(".json") else tomllib.load(file)
    options.set = dict(pair.split("=", 1) for pair in options.set)
    options.bench = dict(pair.split("=", 1) for pair in options.bench)
    names = options.scenarios or [name for name in SCENARIOS if name not in options.right_only]
    for name in names + options.right_only:
        if name not in SCENARIOS:
            parser.error(f"no scenario '{name}'; there are {', '.join(SCENARIOS)}")
    for side in (options.left, options.right):
        if side not in options.targets:
            parser.error(f"no target '{side}'; there are {', '.join(options.targets)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    build(options)
    results: Results = {name: ([], []) for name in names + options.right_only}
    for number in range(options.rounds):
        for name in results:
            sides = [(0, options.left), (1, options.right)]
            if name in options.right_only:
                sides = sides[1:]
            for side, target in sides if number % 2 == 0 else sides[::-1]:
                figures = measure(options.targets[target], SCENARIOS[name], options)
                results[name][side].append(figures)
                print(f"round {number + 1} {name} {target}: {json.dumps(figures)}", file=sys.stderr, flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(
                {name: {options.left: left, "right": right} for name, (left, right) in results.items()}, file, indent=1
            )
    print(table({name: pair for name, pair in results.items()}, options))
    verdicts = []
    for text in options.at_least:
        what, _, least = text.partition("=")
        name, _, figure = what.partition(".")
        figure = figure or SCENARIOS[name]["figure"]
        got = ratio(name, *results[name], figure, figure != "throughput")
        verdicts.append((got >= float(least), f"{what} {got:.2f} (≥ {least})"))
    for text in options.relation:
        what, _, least = text.partition("=")
        above, _, below = what.partition("/")
        figure = SCENARIOS[above]["figure"]
        got = (median(results[above][1], figure) or 0) / (median(results[below][1], figure) or 1)
        verdicts.append((got >= float(least), f"{what} {got:.2f} (≥ {least})"))
    failures = sum(run["failures"] for pair in results.values() for run in pair[1])
    if verdicts:
        if failures:
            verdicts.append((False, f"{failures} failed operations"))
        print("; ".join(("" if holds else "SHORT ") + text for holds, text in verdicts))
        sys.exit(not all(holds for holds, _ in verdicts))


if __name__ == "__main__":
    main()
