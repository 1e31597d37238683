"""The name server: which brokers live, which topics they serve, and a small key-value configuration.

    registration.py  what a broker says of itself, and what is too much of it
    routes.py        RouteTable, pure: registrations in, routes out, and what expired
    kvconfig.py      KvConfig: the configuration that tools write, kept in a file
    state.py         Namesrv, what the handlers work on
    handlers.py      one function per request code
    app.py           starts, nests and stops all of it

Name servers know nothing of each other: brokers register with all of them, clients ask one of them.
"""
