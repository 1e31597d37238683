"""Replication from a master to its slaves over RocketMQ's HA wire (spec/ha.md 1).

progress.py     pure: which slave has which bytes, and what that acknowledges
history.py      pure: whether two logs are one log, and where a slave goes on
tickets.py      pure: what ties a slave's connection to the join that was agreed on
master.py       the master: joins, greetings, the port for slaves
link.py         one connection of a slave, seen from the master
inspection.py   what a master finds out about an official slave
slave.py        the slave: its link to the master
joining.py      how a slave and its master compare their logs first
locator.py      where the master is
parts.py        what all of this needs of the store
"""
