"""Bytes to typed values and back: RocketMQ's wire and record formats.

This package does no I/O, reads no clock, logs nothing and keeps no global state, so every codec can be tested
with bytes alone. `store` and `gateway` import from it; it imports from neither.
"""
