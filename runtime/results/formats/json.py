"""poses.json: ``{"meta": {...}, "frames": [{"frame", "timestamp", "people"}, one per line]}``.

A frame of which the decoder made parts up also has ``"corrupt": true``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mambapose.runtime.results.formats.writer import close_quietly
from mambapose.runtime.results.journal import Record, json_text


class JsonWriter:
    """poses.json: one frame per line."""

    def __init__(self, path: Path, meta: Mapping[str, object]) -> None:
        self._file = path.open("wb")
        self._before = b"\n"
        text = json.dumps(meta, ensure_ascii=False, allow_nan=False)
        self._file.write(b'{"meta": ' + text.encode() + b',\n"frames": [')

    def add(self, record: Record) -> None:
        self._file.write(self._before + json_text(record).encode())
        self._before = b",\n"

    def finish(self) -> None:
        self._file.write(b"\n]}\n")
        self._file.flush()

    def __enter__(self) -> JsonWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        close_quietly(self._file)
