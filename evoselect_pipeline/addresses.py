"""Which addresses may be spoken to."""

from urllib.parse import SplitResult

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def is_in_the_clear(address: SplitResult) -> bool:
    """Whether what is sent there can be listened to: http to another machine than this one."""
    return address.scheme == "http" and address.hostname not in LOOPBACK
