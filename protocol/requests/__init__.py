"""One `Header` class for each request code that anybody has to read or write, named after the code.

Importing this package imports all of them and thereby fills `protocol.header.REQUESTS`. A code without header
fields has a class too: handlers are found by class. Fields that 5.x clients add to every request (`bname`, `ns`,
`nsd`, `lo`, `oway`) are declared nowhere, since unknown fields are ignored.
"""

from protocol.requests import (
    acl,
    clients,
    groups,
    offsets,
    pull,
    queries,
    replication,
    routes,
    runtime,
    send,
    topics,
    transactions,
)

__all__ = [
    "acl",
    "clients",
    "groups",
    "offsets",
    "pull",
    "queries",
    "replication",
    "routes",
    "runtime",
    "send",
    "topics",
    "transactions",
]
