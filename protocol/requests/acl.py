"""Access control of 4.x: accounts and addresses in plain_acl.yml, changed over the wire (spec/remoting.md 6.1, 8)."""

from protocol.codes import RequestCode
from protocol.header import Header, request


@request(RequestCode.UPDATE_AND_CREATE_ACL_CONFIG)
class UpdateAndCreateAclConfig(Header):
    """One account; `topic_perms` and `group_perms` are comma-separated `name=PERM`."""

    access_key: str
    secret_key: str | None = None
    white_remote_address: str | None = None
    admin: bool = False
    default_topic_perm: str | None = None
    default_group_perm: str | None = None
    topic_perms: str | None = None
    group_perms: str | None = None


@request(RequestCode.DELETE_ACL_CONFIG)
class DeleteAclConfig(Header):
    """Forget one account."""

    access_key: str


class AclVersionReply(Header):
    """`version` is a DataVersion as JSON, `all_acl_file_version` a JSON object from file path to DataVersion."""

    version: str
    broker_name: str
    broker_addr: str
    cluster_name: str
    all_acl_file_version: str | None = None


@request(RequestCode.GET_BROKER_CLUSTER_ACL_INFO, reply=AclVersionReply)
class GetBrokerClusterAclInfo(Header):
    """Which version of the accounts this broker has."""


@request(RequestCode.UPDATE_GLOBAL_WHITE_ADDRS_CONFIG)
class UpdateGlobalWhiteAddrsConfig(Header):
    """Addresses that need no key, comma-separated; `acl_file_full_path` tells in which of several files."""

    global_white_addrs: str
    acl_file_full_path: str | None = None


@request(RequestCode.GET_BROKER_CLUSTER_ACL_CONFIG)
class GetBrokerClusterAclConfig(Header):
    """All accounts and addresses, as a body."""
