"""Who is named for the pictures: those of the chosen crops, each once."""

from __future__ import annotations

from pathlib import Path

import pytest

from mambapose.runtime.errors import ExportError
from mambapose.train.real.credits import credits_of, read_rows, text_of

TABLE = """index,split,source,licence,attribution,repository
0,train,clips,CC-BY-4.0,Somebody,a/b
1,train,clips,CC-BY-4.0,Somebody,a/b
2,val,clips,CC-BY-4.0,Nobody,a/b
3,train,photographs,CC0-1.0,"Anybody, of a place",c/d
"""


def test_those_of_the_chosen_are_named_once(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(TABLE, encoding="utf-8")
    clips, photographs = credits_of(read_rows(path), [0, 1, 3])
    assert (clips.people, clips.names, clips.licence) == (2, ("Somebody",), "CC-BY-4.0")
    assert photographs.names == ("Anybody, of a place",)
    assert text_of(clips) == "clips: 2 people, CC-BY-4.0, as found in a/b:\nSomebody."


def test_another_table_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    with pytest.raises(ExportError, match="licences of pictures were wanted"):
        read_rows(path)
    path.write_text("index,source\n0,clips\n", encoding="utf-8")
    with pytest.raises(ExportError, match="licence, attribution, repository were wanted"):
        read_rows(path)
