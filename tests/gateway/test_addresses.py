"""Addresses: which one is registered, and how lists are written."""

import socket
from typing import Any

import pytest

from gateway.addresses import Address, choose_address, ip_of, local_address, parse_addresses, why_unreachable


class TestParsing:
    def test_several_addresses(self) -> None:
        text = "10.0.0.1:9876; mq-1.example.org:9877;;[2001:db8::1]:1;fe80::2:65535;"
        assert parse_addresses(text) == [
            Address("10.0.0.1", 9876),
            Address("mq-1.example.org", 9877),
            Address("2001:db8::1", 1),
            Address("fe80::2", 65535),
        ]

    @pytest.mark.parametrize("text", ["", " ", ";;"])
    def test_no_address(self, text: str) -> None:
        assert parse_addresses(text) == []

    @pytest.mark.parametrize("text", ["host", "host:", ":1", "host:0", "host:65536", "a b:1", "http://a:1", "a:1,b:2"])
    def test_a_bad_part_is_named(self, text: str) -> None:
        with pytest.raises(ValueError, match=r".") as caught:
            parse_addresses(f"ok:1;{text}")
        assert str(caught.value) == text

    def test_text_of_an_address_reads_back(self) -> None:
        for address in (Address("a", 1), Address("2001:db8::1", 2)):
            assert parse_addresses(str(address)) == [address]


class TestChoice:
    """The rule of RemotingUtil.getLocalAddress: not loopback, not 192.168 if there is another."""

    @pytest.mark.parametrize(
        ("candidates", "chosen"),
        [
            (["127.0.0.1", "10.1.2.3", "172.17.0.2"], "10.1.2.3"),
            (["127.0.0.1", "192.168.1.7", "10.1.2.3"], "10.1.2.3"),
            (["127.0.0.1", "192.168.1.7", "192.168.2.7"], "192.168.2.7"),
            (["127.0.0.1"], None),
            ([], None),
        ],
    )
    def test_choose(self, candidates: list[str], chosen: str | None) -> None:
        assert choose_address(candidates) == chosen

    def test_this_machine_has_an_address(self) -> None:
        assert parse_addresses(f"{local_address()}:1")


class TestReach:
    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "::1", "0.0.0.0", "169.254.1.1"])
    def test_addresses_that_mean_nothing_elsewhere(self, host: str) -> None:
        assert why_unreachable(host)

    @pytest.mark.parametrize("host", ["10.1.2.3", "mq.example.org", "203.0.113.9", "2001:db8::1"])
    def test_addresses_that_may_be_reached(self, host: str) -> None:
        assert why_unreachable(host) is None


class TestAddressOfAName:
    @pytest.mark.parametrize("address", ["10.0.0.1", "2001:db8::1"])
    def test_an_address_is_its_own(self, address: str) -> None:
        assert ip_of(address) == address

    def test_ipv4_comes_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def found(host: str, *rest: Any, **more: Any) -> list[Any]:
            assert host == "mq-0.mq"
            return [
                (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 0, 0, 0)),
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.7", 0)),
            ]

        monkeypatch.setattr(socket, "getaddrinfo", found)
        assert ip_of("mq-0.mq") == "10.0.0.7"

    @pytest.mark.parametrize("name", ["a" * 300, "a..b"])
    def test_what_cannot_be_a_name(self, name: str) -> None:
        with pytest.raises(OSError):  # noqa: PT011 - the text is the resolver's
            ip_of(name)
