"""Damage to the bytes of a file, as transfers, disks and attackers do it."""

from __future__ import annotations

from random import Random

NUMBERS = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\x80\0\0\0", b"\0\0\0\1")
HEAD = 1500  # where most of the structure is


def mutated(data: bytes, rng: Random) -> bytes:
    """The bytes with one kind of damage; nothing but ``rng`` decides which."""
    out = bytearray(data)
    size = len(out)
    kind = rng.choice(("few", "many", "head", "hole", "zero", "twice", "noise", "number", "cut"))
    at = rng.randrange(size)
    if kind == "few":
        for _ in range(rng.randint(1, 8)):
            out[rng.randrange(size)] = rng.randrange(256)
    elif kind == "many":
        for _ in range(size // 100 + 1):
            out[rng.randrange(size)] = rng.randrange(256)
    elif kind == "head":
        for _ in range(rng.randint(1, 12)):
            at = rng.randrange(min(size, HEAD))
            out[at] = rng.choice((0, 255, 127, 128, rng.randrange(256)))
    elif kind == "hole":
        del out[at : at + rng.randint(1, 4000)]
    elif kind == "zero":
        end = min(size, at + rng.randint(1, 4000))
        out[at:end] = bytes(end - at)
    elif kind == "twice":
        out[at:at] = out[at : at + rng.randint(1, 4000)]
    elif kind == "noise":
        out[at:at] = rng.randbytes(rng.randint(1, 2000))
    elif kind == "number":
        at = rng.randrange(max(1, min(size, HEAD) - 4))
        out[at : at + 4] = rng.choice(NUMBERS)
    else:
        del out[at:]
    return bytes(out)
