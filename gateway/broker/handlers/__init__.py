"""The broker's handlers, one module per kind of request, with the same file names as protocol/requests."""

from gateway.broker.handlers import (
    clients,
    groups,
    offsets,
    pull,
    queries,
    replication,
    replies,
    resets,
    retries,
    runtime,
    send,
    topics,
    transactions,
)

ROUTES = [
    module.routes
    for module in (
        send,
        pull,
        queries,
        offsets,
        resets,
        retries,
        transactions,
        replies,
        clients,
        groups,
        topics,
        runtime,
        replication,
    )
]
