"""Which addresses may be spoken to, and how they may be shown."""

from __future__ import annotations

import re
import socket
import unicodedata
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import SplitResult

LOOPBACK = ("localhost", "127.0.0.1", "::1")
# Where clouds hand a machine its credentials: by name, and where that is no link-local address.
METADATA_NAMES = ("metadata", "metadata.google.internal", "instance-data")
METADATA_ADDRESSES = ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254")
# IPv6 addresses that stand for the IPv4 one in their last four bytes.
EMBEDDING = [ip_network(prefix) for prefix in ("::/96", "::ffff:0:0/96", "64:ff9b::/96")]
LOGIN = re.compile(r"^(\w[\w+.-]*://)?.*@", re.DOTALL)


def is_in_the_clear(address: SplitResult) -> bool:
    """Whether what is sent there can be listened to: http to another machine than this one."""
    return address.scheme == "http" and address.hostname not in LOOPBACK


def is_metadata_service(host: str) -> bool:
    """Whether a host is a cloud's metadata service, or link-local, in any spelling.

    A name that only leads there, by DNS, is not found out.
    """
    name = unicodedata.normalize("NFKC", host).replace("。", ".").lower().rstrip(".")
    number = _number(name)
    if number is None:
        return name in METADATA_NAMES
    return number.is_link_local or str(number) in METADATA_ADDRESSES


def without_login(address: str) -> str:
    """An address as it may be shown: without the user and password that it may hold."""
    return LOGIN.sub(r"\1***@", address)


def _number(name: str) -> IPv4Address | IPv6Address | None:
    """The address that a host is written as, if it is no name."""
    try:
        # Resolvers take 2852039166 and 0xa9fea9fe for addresses, too.
        return IPv4Address(socket.inet_aton(name))
    except OSError:
        pass
    try:
        number = ip_address(name)
    except ValueError:
        return None
    if any(number in network for network in EMBEDDING):
        return IPv4Address(number.packed[12:])
    return number
