"""Where official weights are published, under which terms, and what their files must hash to.

The addresses stand in the authors' own READMEs, model pages and packages (``page``), and were only
read there: none of them was fetched when this list was written. The hashes of raft-small and
yolox-nano are those of files in hand; those of vim-* stand on the publisher's pages; the others
were read in two or more public projects that pin the same file (depth-anything-v1-small: in one).
A hash that is wrong here costs a refused download, never a wrong file.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mambapose.export.models import NETWORKS
from mambapose.runtime.errors import ExportError
from mambapose.runtime.stages.table import STAGES


@dataclass(frozen=True)
class OfficialFile:
    """The official weights of one network.

    stage: the stage of a bundle, or None for weights that only a training starts from. licence:
    what it allows, in one line; terms: the page that says so. page: where a person finds the file.
    url: a direct link; None where there is none, and ``by_hand`` says what to take from ``page``.
    sha256: of the weights, None where nobody publishes it. member: the name of the weights inside
    the zip at ``url``, whose own hash is archive_sha256. megabytes: the size of the download, None
    if it is not published.
    """

    name: str
    stage: str | None
    licence: str
    terms: str
    page: str
    url: str | None = None
    sha256: str | None = None
    megabytes: int | None = None
    member: str | None = None
    archive_sha256: str | None = None
    by_hand: str = ""

    @property
    def file(self) -> str:
        """The name of the weights file."""
        return (self.member or self.url or "").rsplit("/", 1)[-1]

    @property
    def size(self) -> str:
        """The size of the download in words."""
        return f"{self.megabytes} MB" if self.megabytes else "size not published"

    def __str__(self) -> str:
        vouched = "" if self.sha256 else "; no SHA-256 published"
        return f"{self.url} ({self.size}{vouched}; {self.licence})"


_HUB = "https://huggingface.co"
_APACHE = "https://www.apache.org/licenses/LICENSE-2.0"


def _raft() -> list[OfficialFile]:
    return [
        OfficialFile(
            "raft-small",
            "flow",
            "BSD-3-Clause, the repository's; the authors have not said if it covers the weights",
            "https://github.com/princeton-vl/RAFT/blob/master/LICENSE",
            "https://github.com/princeton-vl/RAFT",
            "https://dl.dropboxusercontent.com/s/4j4z58wuv8o0mfz/models.zip",
            "c7d41b9cc88442bb8aa911dbb33086dac55a226394b142937ff22d5578717332",
            79,
            member="models/raft-small.pth",
            archive_sha256="4be6101b271f58ec49866da5cf609fd17e86e9cae2483f70630ef4a295dc66bd",
        ),
        OfficialFile(
            "raft-large",
            "flow",
            "BSD-3-Clause, torchvision's; terms of the training data may apply to the weights",
            "https://github.com/pytorch/vision#pre-trained-model-license",
            "https://docs.pytorch.org/vision/stable/models/raft.html",
            "https://download.pytorch.org/models/raft_large_C_T_SKHT_V2-ff5fadd5.pth",
            "ff5fadd56d26b40647388883af1547351ea17868b765c05b27231e72dd16a322",
            21,
        ),
    ]


def _depth() -> list[OfficialFile]:
    free = "Apache-2.0"
    bound = "CC-BY-NC-4.0: NOT FOR COMMERCIAL USE"
    nc = "https://creativecommons.org/licenses/by-nc/4.0/"
    v2 = {
        "small": (99, "715fade13be8f229f8a70cc02066f656f2423a59effd0579197bbf57860e1378"),
        "base": (390, "0d2b7002e62d39d655571c371333340bd88f67ab95050c03591555aa05645328"),
        "large": (1341, "a7ea19fa0ed99244e67b624c72b8580b7e9553043245905be58796a608eb9345"),
    }
    v1 = {
        "small": (99, "59afe57cfd9f4284deaf5b753d954723d7136ae842fba3e068ba03537ca1e60e"),
        "base": (390, "64ae214ae4e27424b644c49464c0aa243016f6f753d95097c8eb9ad0b9cb2d9b"),
        "large": (1341, "6c6a383e33e51c5fdfbf31e7ebcda943973a9e6a1cbef1564afe58d7f2e8fe63"),
    }
    rows = []
    for size, (megabytes, sha256) in v2.items():
        page = f"{_HUB}/depth-anything/Depth-Anything-V2-{size.capitalize()}"
        rows.append(
            OfficialFile(
                f"depth-anything-v2-{size}",
                "depth",
                free if size == "small" else bound,
                _APACHE if size == "small" else nc,
                page,
                f"{page}/resolve/main/depth_anything_v2_vit{size[0]}.pth",
                sha256,
                megabytes,
            )
        )
    for size, (megabytes, sha256) in v1.items():
        page = f"{_HUB}/spaces/LiheYoung/Depth-Anything"
        rows.append(
            OfficialFile(
                f"depth-anything-v1-{size}",
                "depth",
                f"{free}, as the author answered",
                "https://github.com/LiheYoung/Depth-Anything/issues/15",
                page,
                f"{page}/resolve/main/checkpoints/depth_anything_vit{size[0]}14.pth",
                sha256,
                megabytes,
            )
        )
    return rows


def _vitpose() -> list[OfficialFile]:
    direct = {  # the classic decoder has two deconvolutions, the simple one none
        "b": ("base", 360, "cd9a4e6cefc33c51ddcc32dd509fc4114b5845256463a69a10ea2dfde402b2f8"),
        "b-simple": (
            "base-simple",
            344,
            "85375373893ddd3641f3912821073e53f5435f9e966e1dca59d004454bfe4fdf",
        ),
    }
    rows = []
    for size, (theirs, megabytes, sha256) in direct.items():
        page = f"{_HUB}/usyd-community/vitpose-{theirs}"
        url = f"{page}/resolve/main/model.safetensors"
        rows.append(
            OfficialFile(
                f"vitpose-{size}", "pose2d", "Apache-2.0", _APACHE, page, url, sha256, megabytes
            )
        )
    for size in "slh":
        for head, table in (("", "classic"), ("-simple", "simple")):
            rows.append(
                OfficialFile(
                    f"vitpose-{size}{head}",
                    "pose2d",
                    "Apache-2.0, the repository's",
                    "https://github.com/ViTAE-Transformer/ViTPose/blob/main/LICENSE",
                    "https://github.com/ViTAE-Transformer/ViTPose",
                    by_hand=f"ViTPose-{size.upper()} of the README's table with the {table} "
                    "decoder, column weight, which leads to OneDrive",
                )
            )
    return rows


def _lifters() -> list[OfficialFile]:
    page = f"{_HUB}/nankingjings/PoseMamba-weights"
    licence = "Apache-2.0, trained on Human3.6M: FOR ACADEMIC USE ONLY by the data's terms"
    return [
        OfficialFile(
            f"posemamba-{size}",
            "lift3d",
            licence,
            "http://vision.imar.ro/human3.6m/eula.php",
            page,
            f"{page}/resolve/main/PoseMamba_{size.upper()}.bin",
        )
        for size in "sbl"
    ]


def _detectors() -> list[OfficialFile]:
    page = "https://github.com/Megvii-BaseDetection/YOLOX/releases/tag/0.1.1rc0"
    files = {
        "nano": (4, "c789161ed43c8269fcd4e67c67eeeb4e80c622da2eb296a20bc6007bd18a0b7d"),
        "tiny": (20, "427cc366d34e27ff7a03e2899b5e3671425c262ea2291f88bb942bc1cc70b0f7"),
    }
    return [
        OfficialFile(
            f"yolox-{size}",
            "detect",
            "Apache-2.0",
            "https://github.com/Megvii-BaseDetection/YOLOX/blob/main/LICENSE",
            page,
            f"{page.replace('/tag/', '/download/')}/yolox_{size}.onnx",
            sha256,
            megabytes,
        )
        for size, (megabytes, sha256) in files.items()
    ]


def _encoders() -> list[OfficialFile]:
    files = {
        "tiny": (
            "vim_t_midclstok_76p1acc.pth",
            115,
            "fedb1e60267f3bc7b2a8443f2ddead8d39e019d10247a87252162b3789801fd5",
        ),
        "small": (
            "vim_s_midclstok_80p5acc.pth",
            413,
            "aae4583e2def6389b66cfaf292cfade47a873182a39adbec19ec55b730ea9fe3",
        ),
    }
    rows = []
    for size, (file, megabytes, sha256) in files.items():
        page = f"{_HUB}/hustvl/Vim-{size}-midclstok"
        url = f"{page}/resolve/main/{file}"
        rows.append(
            OfficialFile(f"vim-{size}", None, "Apache-2.0", _APACHE, page, url, sha256, megabytes)
        )
    return rows


SOURCES: dict[str, OfficialFile] = {
    source.name: source
    for rows in (_raft, _depth, _vitpose, _lifters, _detectors, _encoders)
    for source in rows()
}


def wanted_sources(asked: Sequence[str]) -> tuple[OfficialFile, ...]:
    """The files that the ``--download`` values name.

    A value is ``NETWORK``, or ``NETWORK=SHA256`` where the user vouches for the file. ExportError:
    a name is not listed, has no direct link or comes twice; two names belong to one stage; weights
    without a stage come beside others; the SHA-256 is malformed or not the listed one.
    """
    found = tuple(_source_from_text(text) for text in asked)
    stages: dict[str | None, str] = {}
    for source in found:
        if source.stage in stages:
            raise ExportError(
                f"--download {stages[source.stage]} and --download {source.name} are both for "
                f"{source.stage or 'training'}; keep one"
            )
        stages[source.stage] = source.name
    if None in stages and len(stages) > 1:
        raise ExportError(
            f"{stages[None]} makes no stage of a bundle, a training starts from it; fetch it by "
            f"itself: mp-export --download {stages[None]}"
        )
    return found


def _source_from_text(text: str) -> OfficialFile:
    name, equals, sha256 = text.partition("=")
    source = SOURCES.get(name)
    if source is None and name in NETWORKS:
        raise ExportError(
            f"weights of {name} were wanted, there is nothing to download: it is this project's "
            "own network, and what weights it has are used without --download"
        )
    if source is None:
        known = ", ".join(name for name, source in SOURCES.items() if source.url)
        raise ExportError(f"--download {name} is not known; use one of: {known}")
    if source.url is None:
        raise ExportError(
            f"weights of {name} were wanted, there is no direct link: open {source.page}, take "
            f"{source.by_hand}, and give the file: --weights {source.stage}=FILE"
        )
    if not equals:
        return source
    sha256 = sha256.lower()
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ExportError(f"--download {name}=SHA256 wants 64 hexadecimal digits, found {sha256!r}")
    if source.sha256 not in (None, sha256):
        raise ExportError(
            f"--download {name}={sha256} contradicts the listed SHA-256 {source.sha256}; leave it "
            f"out, or give a file you trust with {way_by_hand(source)}"
        )
    return dataclasses.replace(source, sha256=sha256)


def way_by_hand(source: OfficialFile) -> str:
    """The option of mp-export that takes a local file of this network."""
    if source.stage is None:  # an encoder, from which a 2D network can start
        return "--weights pose2d=FILE --untrained"
    return STAGES[source.stage].by_hand
