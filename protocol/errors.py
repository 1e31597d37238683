"""What can go wrong between bytes and values.

    ProtocolError
    ├── LocalProtocolError      we tried to send something that the protocol cannot carry
    └── RemoteProtocolError     the peer sent something wrong; carries the answer it deserves
        └── FrameError          the byte stream itself is broken: nothing after it can be trusted

A `RemoteProtocolError` belongs to one request and is answered with its response code and remark. A `FrameError`
belongs to the connection, which is closed: where the next frame begins is no longer known.
"""

from protocol.codes import ResponseCode


class ProtocolError(Exception):
    """Base of everything that `protocol` raises."""


class LocalProtocolError(ProtocolError):
    """Our own side asked for something that has no representation on the wire."""


class RemoteProtocolError(ProtocolError):
    """The peer's request is wrong; `response_code` and `remark` say what to answer."""

    def __init__(self, remark: str, response_code: int = ResponseCode.SYSTEM_ERROR) -> None:
        super().__init__(remark)
        self.remark = remark
        self.response_code = int(response_code)


class FrameError(RemoteProtocolError):
    """The stream cannot be split into frames any more; the connection has to be closed."""
