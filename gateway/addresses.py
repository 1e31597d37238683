"""Which address clients are told, and how lists of addresses are written.

A broker registers one address with the name servers, and every client connects to that address. The choice
follows RemotingUtil.getLocalAddress of the official package, so that a host that changes over keeps its address.
"""

import ipaddress
import re
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of a network interface
_ADDRESS = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]|[0-9A-Fa-f:]+):(?P<port>[0-9]{1,5})", re.ASCII)


class Address(NamedTuple):
    """A host (name or IP, IPv6 without brackets) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_addresses(text: str) -> list[Address]:
    """`host:port;host:port` as in namesrvAddr; empty parts do not count. Raises ValueError with the bad part."""
    addresses = []
    for part in filter(None, map(str.strip, text.split(";"))):
        match = _ADDRESS.fullmatch(part)
        if match is None or not 0 < int(match["port"]) <= 65_535:
            raise ValueError(part)
        addresses.append(Address(match["host"].strip("[]"), int(match["port"])))
    return addresses


def local_address() -> str:
    """The address that is registered unless brokerIP1 names one; 127.0.0.1 where there is no other."""
    return choose_address(_interface_addresses()) or "127.0.0.1"


def choose_address(candidates: Iterable[str]) -> str | None:
    """The first IPv4 address that is neither loopback nor 192.168; else the last one that is not loopback."""
    usable = [address for address in candidates if not address.startswith("127.")]
    return next((address for address in usable if not address.startswith("192.168.")), usable[-1] if usable else None)


def _interface_addresses() -> list[str]:
    """IPv4 addresses of the network interfaces in the kernel's order, without bridges."""
    # Not available on every platform (macOS, BSD): there the route to the outside tells one address.
    try:
        import fcntl
    except ImportError:  # pragma: no cover
        return _outgoing_address()
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            if Path("/sys/class/net", name, "bridge").exists():
                continue
            with suppress(OSError):  # an interface without an IPv4 address
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found.append(socket.inet_ntoa(answer[20:24]))
    return found or _outgoing_address()


def _outgoing_address() -> list[str]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # connecting a datagram socket sends nothing
        return [str(probe.getsockname()[0])]
    return []


def ip_of(host: str) -> str:
    """The IP address that a name stands for now, IPv4 if it has one; an IP address as it is. Raises OSError."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except UnicodeError as error:
            raise OSError(f"'{host}' cannot be a host name: {error}") from None
        return str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])
    return host


def why_unreachable(host: str) -> str | None:
    """A reason why clients on other machines cannot connect to this address, or None. Names are not resolved."""
    if host == "localhost":
        return "it is this machine's own name for itself"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if address.is_loopback:
        return "it is a loopback address"
    if address.is_unspecified:
        return "it stands for all addresses of a machine, not for one"
    if address.is_link_local:
        return "it is a link-local address"
    if Path("/.dockerenv").exists() and address in ipaddress.ip_network("172.16.0.0/12"):
        return "it is the address of a container, known to its own host only"
    return None
