"""Everything that waits, listens, retries or measures: the name server, the broker, and their commands.

Runs on one Trio loop per process. It imports from `store` and `protocol`; nothing imports it but the entry points
and the tests.
"""
