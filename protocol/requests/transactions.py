"""Transactions: the producer's verdict on a half message, and the broker's question for it."""

from protocol.codes import RequestCode
from protocol.header import Header, Int32, Int64, request


@request(RequestCode.END_TRANSACTION)
class EndTransaction(Header):
    """One-way. `commit_or_rollback` is 8 for commit, 12 for rollback, 0 for unknown: the sysFlag bits of a record.

    `tran_state_table_offset` is the half message's queue offset, `commit_log_offset` its place in the commitlog.
    """

    producer_group: str
    tran_state_table_offset: Int64
    commit_log_offset: Int64
    commit_or_rollback: Int32
    msg_id: str
    from_transaction_check: bool = False
    transaction_id: str | None = None
    topic: str | None = None


@request(RequestCode.CHECK_TRANSACTION_STATE)
class CheckTransactionState(Header):
    """Broker to one producer of the group, one-way, with the half message's record as body.

    `msg_id` is the client's message id (UNIQ_KEY), `offset_msg_id` the broker's.
    """

    tran_state_table_offset: Int64
    commit_log_offset: Int64
    msg_id: str | None = None
    transaction_id: str | None = None
    offset_msg_id: str | None = None


@request(RequestCode.RESUME_CHECK_HALF_MESSAGE)
class ResumeCheckHalfMessage(Header):
    """Ask again for a half message that was given up; `msg_id` is an offset message id."""

    msg_id: str | None = None
    topic: str | None = None
