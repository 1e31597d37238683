"""Declared layouts of the derived files: the specification that the fast twins are tested against.

Owns: the byte layout of a consume queue unit and of an index file, with offsets. All integers are big-endian
and signed, as Java writes them. Only tools and tests import this module: a broker that starts in a few tenths
of a second cannot spend a part of them on importing construct, so the store itself uses the ``struct`` twins in
``queuefiles`` and ``indexfile``, and a property test holds both to the same answer.
"""

from construct import Int32sb, Int64sb, Struct

# consumequeue/<topic>/<queueId>/<20 digits>: units without header or gaps; unit i of the queue is at byte 20*i.
QUEUE_UNIT = Struct(
    "physical_offset" / Int64sb,  # 0: where the record begins in the commitlog
    "size" / Int32sb,  # 8: of the whole record; 0 and physical_offset 0: never written
    "tags_code" / Int64sb,  # 12: Java hash of TAGS, or the time of delivery of a delayed message
)

# index/<17 digits>: header, hash slots (int32: newest entry of the chain, 0 none), entries from number 0 on.
INDEX_HEADER = Struct(
    "begin_timestamp" / Int64sb,  # 0: store time of the first indexed record, ms
    "end_timestamp" / Int64sb,  # 8: store time of the last one, ms
    "begin_physical_offset" / Int64sb,  # 16
    "end_physical_offset" / Int64sb,  # 24: where the last indexed record begins
    "used_slots" / Int32sb,  # 32
    "index_count" / Int32sb,  # 36: number of the next entry; starts at 1, entry 0 is never used
)

INDEX_ENTRY = Struct(
    "key_hash" / Int32sb,  # 0: abs(Java hash of "topic#key")
    "physical_offset" / Int64sb,  # 4
    "seconds" / Int32sb,  # 12: store time - begin_timestamp, in whole seconds
    "previous" / Int32sb,  # 16: number of the next older entry of the same slot, 0 none
)
