"""Replication from a master to its slaves over RocketMQ's HA wire (spec/ha.md 1).

progress.py   pure: which slave has which bytes, and what that acknowledges
history.py    pure: whether two logs are one log, and where a slave goes on
master.py     the listener for slaves; one task pair per slave
slave.py      the link to the master
locator.py    where the master is
"""
