"""Brokers for the tests of services, the same as for those of handlers."""

from tests.gateway.broker.handlers.conftest import make_rig, rig

__all__ = ["make_rig", "rig"]
