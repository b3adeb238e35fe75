"""Print the folder that holds ONNX Runtime's C headers, fetching them once when they are missing.

Run by CMake while the package is installed, so only the standard library is available. Nothing
is installed on the system: apt downloads Debian's or Ubuntu's ``libonnxruntime-dev`` through the
mirror the machine is configured with (from a newer release of it when the running one lacks the
package), ``dpkg-deb`` unpacks it, and the headers stay in a cache so that later builds need no
network. Last resort: the official release archive, of known SHA-256. Exit 1 with one reason per way
that failed.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HEADER = "onnxruntime_c_api.h"
PACKAGE = "libonnxruntime-dev"
RELEASE = "1.23.2"
RELEASE_URL = (
    "https://github.com/microsoft/onnxruntime/releases/download/"
    "v{version}/onnxruntime-linux-{machine}-{version}.tgz"
)
# Machine -> its name in the address, and the SHA-256 of that archive.
MACHINES = {
    "x86_64": ("x64", "1fa4dcaef22f6f7d5cd81b28c2800414350c10116f5fdd46a2160082551c5f9b"),
    "aarch64": ("aarch64", "7c63c73560ed76b1fac6cff8204ffe34fe180e70d6582b5332ec094810241e5c"),
}
MAX_ARCHIVE_BYTES = 64 << 20  # they have 8 MB
NETWORK_TIMEOUT_S = 20
# Releases in order of age; the package first appears in trixie and plucky.
RELEASES = {
    "debian": ("bookworm", "trixie", "forky", "sid"),
    "ubuntu": ("jammy", "noble", "plucky", "questing", "resolute"),
}
COMPONENTS = {"debian": "main", "ubuntu": "main universe"}


class Unavailable(Exception):
    """One way of finding the headers failed; the message says why."""


@dataclass(frozen=True)
class Source:
    """One configured mirror: its address, its suites and the keyring that signs it ("" = any)."""

    uri: str
    suites: tuple[str, ...]
    signed_by: str = ""


def sources_from_list(text: str) -> Iterator[Source]:
    """Mirrors of a one-line-style file: ``deb [options] URI SUITE COMPONENT ...``."""
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^\]]*)\]\s*)?(\S+)\s+(\S+)\s+\S", line)
        if match:
            options, uri, suite = match.groups()
            signed = re.search(r"signed-by=(\S+)", options or "")
            yield Source(uri, (suite,), signed[1] if signed else "")


def sources_from_deb822(text: str) -> Iterator[Source]:
    """Mirrors of a ``.sources`` file: paragraphs of ``Key: value`` lines."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines)):
        pairs = re.findall(r"^(\S+):[ \t]*(.*(?:\n[ \t].+)*)", paragraph, re.MULTILINE)
        fields = {key.lower(): value.strip() for key, value in pairs}
        wanted = "deb" in fields.get("types", "").split()
        if not wanted or fields.get("enabled", "yes").lower() == "no":
            continue
        for uri in fields.get("uris", "").split():
            suites = tuple(fields.get("suites", "").split())
            yield Source(uri, suites, fields.get("signed-by", ""))


def configured_sources(folder: Path) -> list[Source]:
    """Every mirror apt is configured with below ``folder`` (/etc/apt)."""
    parts = sorted((folder / "sources.list.d").glob("*"))
    found: list[Source] = []
    for path in (folder / "sources.list", *parts):
        parse = {".list": sources_from_list, ".sources": sources_from_deb822}.get(path.suffix)
        if parse is not None and path.is_file():
            found += parse(path.read_text(errors="replace"))
    return found


def candidates(sources: list[Source], system: str, release: str) -> list[Source]:
    """The mirrors of the distribution, once per release from the running one onwards."""
    known = RELEASES.get(system, ())
    if release not in known:
        raise Unavailable(f"no release of {system or 'this system'} is known to follow {release!r}")
    base = [source for source in sources if release in source.suites]
    if not base:
        raise Unavailable(f"apt has no mirror for {release}")
    newer = known[known.index(release) :]
    return [Source(source.uri, (name,), source.signed_by) for name in newer for source in base]


def deb822_from_source(source: Source, components: str) -> str:
    """The ``.sources`` paragraph of one mirror and release."""
    lines = ["Types: deb", f"URIs: {source.uri}", f"Suites: {source.suites[0]}"]
    lines.append(f"Components: {components}")
    return "\n".join(
        [*lines, *([f"Signed-By: {source.signed_by}"] if source.signed_by else []), ""]
    )


def apt(scratch: Path, *arguments: str) -> None:
    """Run apt-get on private lists below ``scratch``, so no root and no change to the system."""
    for name in ("state/lists/partial", "cache/archives/partial", "empty"):
        (scratch / name).mkdir(parents=True, exist_ok=True)
    options = {
        "Dir::Etc::SourceList": "/dev/null",
        "Dir::Etc::SourceParts": scratch / "sources.d",
        "Dir::Etc::PreferencesParts": scratch / "empty",
        "Dir::State": scratch / "state",
        "Dir::State::status": "/var/lib/dpkg/status",
        "Dir::Cache": scratch / "cache",
        "Acquire::Languages": "none",
        "Acquire::Retries": "0",
        "Acquire::http::Timeout": NETWORK_TIMEOUT_S,
        "Acquire::https::Timeout": NETWORK_TIMEOUT_S,
        "APT::Sandbox::User": "root",
        "APT::Update::Error-Mode": "any",
    }
    flags = [f"-o{key}={value}" for key, value in options.items()]
    command = ["apt-get", "-qq", *flags, *arguments]
    done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["no reason given"]
        raise Unavailable(f"apt-get {arguments[0]}: {reason[0]}")


def headers_below(folder: Path) -> Path | None:
    """The folder below ``folder`` that holds the C header, or None."""
    return next((path.parent for path in sorted(folder.rglob(HEADER))), None)


def keep(found: Path | None, cache: Path, origin: str) -> Path:
    """Copy the C headers into the cache, complete or not at all; returns the cached folder."""
    if found is None:
        raise Unavailable(f"{origin} holds no {HEADER}")
    cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache.parent) as partial:
        ready = Path(partial) / "include"
        ready.mkdir()
        for header in found.glob("onnxruntime*.h"):
            shutil.copy(header, ready)
        shutil.rmtree(cache, ignore_errors=True)
        ready.rename(cache)
    return cache


def system_release(text: str) -> tuple[str, str]:
    """(system, release) of an os-release file, e.g. ("debian", "bookworm")."""
    fields = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', text, re.MULTILINE))
    return fields.get("ID", ""), fields.get("VERSION_CODENAME", "")


def headers_from_apt(cache: Path, etc: Path = Path("/etc")) -> Path:
    """The cached headers of the first release of the mirror that has the package."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise Unavailable("apt-get and dpkg-deb are not both here")
    system, release = system_release((etc / "os-release").read_text())
    reasons = []
    for source in candidates(configured_sources(etc / "apt"), system, release):
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder)
            (scratch / "sources.d").mkdir()
            paragraph = deb822_from_source(source, COMPONENTS[system])
            (scratch / "sources.d" / "mirror.sources").write_text(paragraph)
            try:
                apt(scratch, "update")
                apt(scratch, "download", PACKAGE)
            except Unavailable as problem:
                reasons.append(f"{source.suites[0]}: {problem}")
                continue
            package = next(scratch.glob("*.deb"))
            subprocess.run(["dpkg-deb", "-x", package, scratch / "tree"], check=True)
            return keep(headers_below(scratch / "tree"), cache, package.name)
    raise Unavailable("; ".join(reasons))


def headers_from_release(cache: Path, url: str = RELEASE_URL) -> Path:
    """The cached headers of the official release archive, which is unpacked only if it is that."""
    if platform.machine() not in MACHINES:
        raise Unavailable(f"no release archive for {platform.machine()}")
    machine, wanted = MACHINES[platform.machine()]
    address = url.format(version=RELEASE, machine=machine)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        try:
            with urllib.request.urlopen(address, timeout=NETWORK_TIMEOUT_S) as stream:
                packed = stream.read(MAX_ARCHIVE_BYTES)
            if (found := hashlib.sha256(packed).hexdigest()) != wanted:
                raise Unavailable(f"{address}: SHA-256 {wanted} was wanted, found {found}")
            with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
                for member in archive:
                    data = archive.extractfile(member) if member.name.endswith(".h") else None
                    if data is not None:
                        (tree / Path(member.name).name).write_bytes(data.read())
        except (OSError, tarfile.TarError) as problem:
            raise Unavailable(f"{address}: {problem}") from problem
        return keep(headers_below(tree), cache, address)


def default_cache() -> Path:
    """Where the headers stay between builds."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "mambapose" / "onnxruntime-headers"


def usable_cache(wanted: Path, otherwise: Path) -> Path:
    """The wanted folder, or the other one when nothing can be written there."""
    try:
        wanted.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return otherwise
    return wanted if os.access(wanted.parent, os.W_OK) else otherwise


def main() -> int:
    """Print the folder, or the reasons on stderr; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--build", type=Path, required=True, help="used if the cache is read-only")
    arguments = parser.parse_args()
    cached = headers_below(arguments.cache)
    if cached is not None:
        print(cached)
        return 0
    cache = usable_cache(arguments.cache, arguments.build / "onnxruntime-headers")
    for way in (headers_from_apt, headers_from_release):
        try:
            print(way(cache))
            return 0
        except (Unavailable, OSError, subprocess.CalledProcessError) as problem:
            print(f"{way.__name__.replace('_', ' ')}: {problem}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
