"""The edge to files, FFmpeg and the system: what they raise becomes a VideoError of one line."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from mambapose.runtime.edges import reason
from mambapose.runtime.errors import MambaPoseError, VideoError

# What PyAV, numpy and the system are known to raise for input that is damaged or not there.
# AssertionError, AttributeError, NameError and TypeError are bugs and keep their traceback.
EDGE_ERRORS = (ArithmeticError, EOFError, LookupError, MemoryError, OSError, RuntimeError,
               ValueError, struct.error, zlib.error)  # fmt: skip

# Names of parameters in addresses of cameras and servers whose values are secrets.
_SECRET = re.compile(
    r"((?<![a-z])(?:pass|passwd|password|pwd|secret|token|key|api_?key|sig|signature|auth)=)"
    r"[^&;?#/\s'\"]*",
    re.IGNORECASE,
)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*://)(\S*)", re.IGNORECASE)


@contextmanager
def video_errors(wanted: str, advice: str) -> Iterator[None]:
    """Errors of the block as VideoErrors: ``WANTED (reason); ADVICE``. Our own pass through."""
    try:
        yield
    except MambaPoseError:
        raise
    except Exception as err:
        if not is_edge_error(err):
            raise
        raise VideoError(f"{wanted} ({reason_of(err)}); {advice}") from err


def is_edge_error(err: BaseException) -> bool:
    """Whether an error says that the input is bad: one of EDGE_ERRORS, or one of FFmpeg's."""
    # FFmpegError is known by its module: av is not imported before it is used.
    ours = any(kind.__module__.split(".")[0] == "av" for kind in type(err).__mro__)
    return ours or isinstance(err, EDGE_ERRORS)


def reason_of(err: BaseException) -> str:
    """What an error says, in one line and without passwords."""
    return masked(reason(err))


def masked(text: str) -> str:
    """The text with the passwords of the addresses in it replaced by ``***``.

    Covers ``scheme://user:password@host`` and values such as ``?token=...``; cameras take
    passwords with an @ or a slash in them, so the last @ of an address ends its password.
    """

    def hide(match: re.Match[str]) -> str:
        scheme, rest = match.groups()
        host = re.split(r"[/?#]", rest, maxsplit=1)[0]
        if "@" in host:
            secret, tail = host.rsplit("@", 1)
            tail += rest[len(host) :]
        elif "@" in rest and re.search(r":(?!\d+$)", host):
            secret, tail = rest.rsplit("@", 1)  # a slash inside the password
        else:
            return match[0]
        user, colon, _ = secret.partition(":")
        return f"{scheme}{user}:***@{tail}" if colon else f"{scheme}***@{tail}"

    return _SECRET.sub(r"\1***", _SCHEME.sub(hide, text))
