"""``make dev``: after an ordinary install, make the checkout what is imported.

    python tests/develop.py        run by the Python of the environment to change

The installed copy of ``mambapose`` goes; in its place ``build/dev/mambapose`` holds links to the
folders of the checkout, and a ``.pth`` file puts ``build/dev`` on the path. The compiled operator
moves into ``plugins/``, where the checkout looks for it. Commands and metadata stay as installed.
"""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINKS = ROOT / "build" / "dev" / "mambapose"
PARTS = ("runtime", "plugins", "export", "benchmarks", "train")


def link_parts() -> None:
    """The parts of the checkout under the names they are imported by."""
    LINKS.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        link = LINKS / part
        link.unlink(missing_ok=True)
        link.symlink_to(ROOT / part)


def use_checkout(site: Path) -> None:
    """Replace the installed copy in ``site`` (site-packages), keeping its compiled files."""
    installed = site / "mambapose"
    for library in (installed / "plugins").glob("libmambapose_*"):
        # Renamed into place: a process that has the old one loaded must not see it change.
        fresh = ROOT / "plugins" / f".{library.name}"
        shutil.copy2(library, fresh)
        fresh.replace(ROOT / "plugins" / library.name)
    shutil.rmtree(installed, ignore_errors=True)
    (site / "mambapose-checkout.pth").write_text(f"{LINKS.parent}\n")


if __name__ == "__main__":
    link_parts()
    use_checkout(Path(sysconfig.get_path("platlib")))
