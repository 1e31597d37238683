"""Durable state: the commitlog and what is derived from it, in the official byte formats.

Everything here is synchronous and has a single writer. It knows neither Trio nor sockets nor slaves; what may run
in a thread says so in its docstring. It imports from `protocol` only.
"""
