"""Opening what FFmpeg reads: which formats, which video stream, and advice when it fails."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mambapose.runtime.errors import VideoError
from mambapose.runtime.video.edges import is_edge_error, reason_of
from mambapose.runtime.video.endings import has_index, missing_end
from mambapose.runtime.video.files import HEAD_BYTES, playlist_kind, read_regular
from mambapose.runtime.video.images import IMAGE_SUFFIXES
from mambapose.runtime.video.pictures import decoder_limit, import_av

# Longer than a camera needs for its first picture, shorter than anybody waits; free in between.
STREAM_TIMEOUT_S = 10.0
# Containers that hold their pictures themselves. A closed list: FFmpeg has formats of text that
# open other files and addresses, and takes them whatever the name of the file says. Formats of
# sound are here so that the sentence can be that there is no picture.
FORMATS = (
    "mov", "matroska", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "live_flv", "asf", "ogg", "gif",
    "mxf", "nut", "ivf", "wtv", "rm", "dv", "yuv4mpegpipe", "nsv", "swf", "mjpeg", "m4v", "h264",
    "hevc", "vvc", "av1", "obu", "h261", "h263", "dirac", "vc1", "avs2", "avs3", "cavsvideo", "evc",
    "mpjpeg", "apng", "png_pipe", "jpeg_pipe", "bmp_pipe", "webp_pipe", "tiff_pipe", "ppm_pipe",
    "pgm_pipe", "dpx_pipe", "exr_pipe", "j2k_pipe", "jpegls_pipe", "jpegxl_pipe", "mp3", "wav",
    "flac", "aac", "aiff", "ac3", "eac3", "caf", "w64", "au", "dts", "amr", "ape", "tta",
)  # fmt: skip
# An address is asked for by the person who types it, and may be a playlist.
NETWORK_FORMATS = (*FORMATS, "hls", "dash", "rtsp", "sdp", "rtp", "sap")
ATTACHED = 0x0400 | 0x0800  # FFmpeg's dispositions: a cover picture, thumbnails of a time line
DEPENDENT, DEFAULT = 0x80000, 0x0001
NAMED = 6  # of the sizes of streams: more would not be read
STILL_CODECS = ("png", "mjpeg", "bmp", "gif", "webp", "tiff")
STILL_BRANDS = (b"heic", b"heix", b"mif1", b"heim", b"heis", b"avif")


def open_container(name: str, address: str, form: str | None, max_pixels: int) -> Any:
    """The open PyAV container behind an address of FFmpeg; VideoError, which calls it ``name``."""
    av = import_av()
    options: dict[str, str] = {}
    if form is None:
        is_network = not address.startswith(("file:", "pipe:"))
        options["format_whitelist"] = ",".join(NETWORK_FORMATS if is_network else FORMATS)
        if not is_network:
            options["protocol_whitelist"] = address.partition(":")[0]
    if address.startswith("rtsp"):
        options["rtsp_transport"] = "tcp"
    # A server that falls silent has gone; a pipe or a camera may take its time.
    timeout = STREAM_TIMEOUT_S if "://" in address else None
    # While it is probed, too. PyAV before 17 writes behind an array when a stream is found only
    # then, as in MPEG-1, and has options to copy to each stream.
    release = int(av.__version__.split(".")[0])
    each = {"max_pixels": decoder_limit(max_pixels)} if release >= 17 else {}
    # Titles in Latin-1 are common in old files, and nobody here reads them. PyAV 19 has no such
    # option any more, and opens such files without it.
    titles = {"metadata_errors": "replace"} if release < 19 else {}
    try:
        return av.open(
            address,
            format=form,
            options=each,
            container_options=options,
            timeout=timeout,
            **titles,
        )
    except Exception as err:
        if not is_edge_error(err):
            raise
        # What FFmpeg says of a format outside the list: invalid argument.
        refused = getattr(err, "errno", None) == errno.EINVAL
        reason = "it is of a format that is not read" if refused else reason_of(err)
        raise VideoError(
            f"video {name} was wanted, it cannot be read ({reason}); {advice(address)}"
        ) from err


def advice(address: str) -> str:
    """What to do about an address that cannot be read."""
    if address == "pipe:0":
        return (
            "stdin must carry a container (mkv, mpegts, nut, fragmented mp4, y4m): "
            "raw frames do not tell their size"
        )
    if not address.startswith("file:"):
        return "check the address and that the camera or server answers"
    head = head_of(address)
    if head is None:
        return "check its permissions"
    if (kind := playlist_kind(head)) is not None:
        return f"it is {kind}, which names other files: pass a video itself"
    if head[4:8] == b"ftyp":
        if not has_index(_path(address)):
            return "its index (moov) is missing: the recording or copy was cut off; copy it again"
        missing = missing_end(_path(address), "mov")
        return f"it is damaged ({missing or 'its header cannot be read'}); copy it again"
    if _path(address).suffix.lower() in IMAGE_SUFFIXES:
        return "it holds neither a PNG, JPEG, BMP, WebP or TIFF picture nor a video"
    return "pass a video file such as .mp4, .mkv, .webm or .avi"


def head_of(address: str) -> bytes | None:
    """The first bytes behind a ``file:`` address, None when they cannot be read."""
    try:
        return read_regular(_path(address), HEAD_BYTES, part=True)
    except (OSError, ValueError):
        return None


def _path(address: str) -> Path:
    return Path(address.removeprefix("file:"))


def video_stream(name: str, address: str, container: Any) -> tuple[Any, str | None]:
    """The stream to read, and a sentence when there were several to choose from.

    Cover pictures are no video. Of several streams the default ones are meant, of these the
    largest, of these the first. VideoError when there is none, or none that can be decoded.
    """
    if len(container.streams.video) > 1 and address.startswith("file:"):
        head = head_of(address) or b""
        if head[4:8] == b"ftyp" and head[8:12] in STILL_BRANDS:
            raise VideoError(
                f"video {name} was wanted, found a picture of several parts (HEIC, AVIF); "
                "save it as .jpg or .png"
            )
    every = [stream for stream in container.streams.video if not _is_cover(stream, container)]
    if not every:
        raise VideoError(
            f"video {name} was wanted, found a file without a video stream; "
            "pass one that has pictures"
        )
    known = [stream for stream in every if getattr(stream, "codec_context", None) is not None]
    if not known:
        missing = missing_end(_path(address), container.format.name)
        reason = "its codec is not known to this FFmpeg, or its header is damaged"
        if missing is not None:
            reason = f"the file is cut off ({missing})"
        raise VideoError(
            f"video {name} was wanted, {reason}; copy it again, or convert it to H.264 in an .mp4"
        )
    marked = [stream for stream in known if _disposition(stream) & DEFAULT] or known
    chosen = max(marked, key=_pixels)
    return chosen, None if len(every) == 1 else _several(every, chosen)


def _is_cover(stream: Any, container: Any) -> bool:
    flags = _disposition(stream)
    if flags & (ATTACHED | DEPENDENT):
        return True
    # Older PyAV does not tell; a still picture without a rate, beside others, is a cover.
    context = getattr(stream, "codec_context", None)
    still = context is not None and context.name in STILL_CODECS
    alone = not container.streams.audio and len(container.streams.video) == 1
    return still and not alone and not stream.average_rate


def _disposition(stream: Any) -> int:
    # A Flag, an IntFlag or a number, as PyAV's release has it.
    flags = getattr(stream, "disposition", 0)
    return int(getattr(flags, "value", flags) or 0)


def _pixels(stream: Any) -> int:
    context = stream.codec_context
    return int(context.width or 0) * int(context.height or 0)


def _several(every: Sequence[Any], chosen: Any) -> str:
    sizes = []
    for stream in every:
        context = getattr(stream, "codec_context", None)
        sizes.append("unknown" if context is None else f"{context.width}x{context.height}")
    number = list(every).index(chosen) + 1
    named = ", ".join(sizes[:NAMED]) + (", ..." if len(sizes) > NAMED else "")
    return f"{len(every)} video streams ({named}): stream {number} is read, of {sizes[number - 1]}"
