"""Official checkpoint files from where their authors publish them.

Every address below stands in the official README, model card or package of the network. A network
without a direct link says where a person gets the file. What was downloaded before is not
downloaded again; what broke off goes on where it stopped.
"""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mambapose.runtime.bundle import file_sha256
from mambapose.runtime.errors import ExportError

PIECE = 1 << 20
TIMEOUT_S = 30


@dataclass(frozen=True)
class Source:
    """Where the weights of a network come from.

    url: a direct link, or None when there is none; then by_hand tells what to do. sha256: all 64
    digits, or the leading ones where the publisher gives only those; None when not published.
    """

    licence: str
    url: str | None = None
    sha256: str | None = None
    by_hand: str = ""

    @property
    def file(self) -> str:
        """The file's name."""
        return (self.url or "").rsplit("/", 1)[-1]


_HF = "https://huggingface.co"
_V1 = f"{_HF}/spaces/LiheYoung/Depth-Anything/resolve/main/checkpoints"
_V2 = f"{_HF}/depth-anything"
_LIFTER = f"{_HF}/nankingjings/PoseMamba-weights/resolve/main"
_H36M = "Apache-2.0; trained on Human3.6M, which is for academic use"
_NC = "CC-BY-NC-4.0: not for commercial use"
_UNSTATED = "licence of the weights not stated"
_VITPOSE = Source(
    "Apache-2.0", by_hand="the README of github.com/ViTAE-Transformer/ViTPose links its checkpoints"
)
_OWN = Source(
    "none", by_hand="this project's own network, no weights exist yet: train it or use --untrained"
)

# raft: torchvision/models/optical_flow/raft.py. depth: the READMEs of Depth-Anything (v1) and
# Depth-Anything-V2; hash: the model page. posemamba: README and model card. vitpose-b: the model
# pages of its authors' group, with the classic (two deconvolutions) and the simple decoder.
SOURCES: dict[str, Source] = {
    "raft-small": Source(
        _UNSTATED, "https://download.pytorch.org/models/raft_small_C_T_V2-01064c6d.pth", "01064c6d"
    ),
    "raft-large": Source(
        _UNSTATED,
        "https://download.pytorch.org/models/raft_large_C_T_SKHT_V2-ff5fadd5.pth",
        "ff5fadd5",
    ),
    "depth-anything-v2-small": Source(
        "Apache-2.0",
        f"{_V2}/Depth-Anything-V2-Small/resolve/main/depth_anything_v2_vits.pth",
        "715fade13be8f229f8a70cc02066f656f2423a59effd0579197bbf57860e1378",
    ),
    "depth-anything-v2-base": Source(
        _NC, f"{_V2}/Depth-Anything-V2-Base/resolve/main/depth_anything_v2_vitb.pth"
    ),
    "depth-anything-v2-large": Source(
        _NC, f"{_V2}/Depth-Anything-V2-Large/resolve/main/depth_anything_v2_vitl.pth"
    ),
    "depth-anything-v1-small": Source(_UNSTATED, f"{_V1}/depth_anything_vits14.pth"),
    "depth-anything-v1-base": Source(_UNSTATED, f"{_V1}/depth_anything_vitb14.pth"),
    "depth-anything-v1-large": Source(_UNSTATED, f"{_V1}/depth_anything_vitl14.pth"),
    "vitpose-b": Source(
        "Apache-2.0", f"{_HF}/usyd-community/vitpose-base/resolve/main/model.safetensors"
    ),
    "vitpose-b-simple": Source(
        "Apache-2.0", f"{_HF}/usyd-community/vitpose-base-simple/resolve/main/model.safetensors"
    ),
    "vitpose-s": _VITPOSE,
    "vitpose-s-simple": _VITPOSE,
    "vitpose-l": _VITPOSE,
    "vitpose-l-simple": _VITPOSE,
    "vitpose-h": _VITPOSE,
    "vitpose-h-simple": _VITPOSE,
    "posemamba-s": Source(_H36M, f"{_LIFTER}/PoseMamba_S.bin"),
    "posemamba-b": Source(_H36M, f"{_LIFTER}/PoseMamba_B.bin"),
    "posemamba-l": Source(_H36M, f"{_LIFTER}/PoseMamba_L.bin"),
    "mambapose-tiny": _OWN,
    "mambapose-small": _OWN,
    "mambapose3d": _OWN,
}


def cache_folder() -> Path:
    """Where downloaded checkpoints stay: MAMBAPOSE_CACHE, else below the user's cache folder."""
    if chosen := os.environ.get("MAMBAPOSE_CACHE"):
        return Path(chosen) / "weights"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mambapose" / "weights"


def download_weights(
    network: str, *, folder: Path | None = None, tell: Callable[[str], None] = lambda line: None
) -> Path:
    """The local file with the official weights of ``network``, downloaded unless it is there.

    ``tell`` receives a line that names the address, the licence and the size.
    ExportError: no direct link, no connection, an incomplete or altered file.
    """
    source = SOURCES.get(network)
    if source is None or source.url is None:
        where = source.by_hand if source else "no source of its weights is known"
        raise ExportError(
            f"weights of {network} were wanted, there is no direct link ({where}); "
            "give the file with --weights"
        )
    path = (folder or cache_folder()) / network / source.file
    tell(f"{network}: {source.url}, {source.licence}")
    return fetch(source, path)


def fetch(source: Source, path: Path) -> Path:
    """``path``, holding the file of ``source``; complete and with the right hash, or absent."""
    if path.is_file() and _hash_fits(source, path):
        return path
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _receive(source, partial)
        if not _hash_fits(source, partial):
            found = file_sha256(partial)
            partial.unlink()
            raise ExportError(
                f"{source.url}: SHA-256 {source.sha256} was wanted, found {found}; the file was "
                "removed, try again or give one you trust with --weights"
            )
        os.replace(partial, path)
    except urllib.error.HTTPError as err:
        err.close()
        raise ExportError(
            f"{source.url} answered {err.code} {err.reason}; get the file by hand and give it "
            "with --weights"
        ) from err
    except (
        urllib.error.URLError,
        http.client.HTTPException,
        TimeoutError,
        ConnectionError,
    ) as err:
        reason = getattr(err, "reason", None) or err
        raise ExportError(
            f"{source.url} could not be reached ({reason}); check the connection and run the "
            "same command again: it goes on where it stopped"
        ) from err
    except OSError as err:
        raise ExportError(
            f"{path} could not be written ({err.strerror or err}); free the disk or set "
            "MAMBAPOSE_CACHE to another folder"
        ) from err
    return path


def _receive(source: Source, partial: Path) -> None:
    """Bring ``partial`` to its full length. Only a file whose hash is known is continued."""
    start = partial.stat().st_size if source.sha256 and partial.is_file() else 0
    request = urllib.request.Request(str(source.url), headers={"User-Agent": "mambapose"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as err:
        if not start or err.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        err.close()  # the partial file is as long as the whole: its hash will tell
        return
    with answer:
        continued = answer.status == http.client.PARTIAL_CONTENT
        start = start if continued else 0
        announced = answer.headers.get("Content-Length")
        with partial.open("ab" if continued else "wb") as file:
            while piece := answer.read(PIECE):
                file.write(piece)
            size = file.tell()
    if announced is not None and size != start + int(announced):
        raise http.client.IncompleteRead(b"", start + int(announced) - size)


def _hash_fits(source: Source, path: Path) -> bool:
    return source.sha256 is None or file_sha256(path).startswith(source.sha256)
