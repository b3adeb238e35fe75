"""One mutated video per number, read to its end."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from random import Random

import av
import numpy as np

from mambapose.runtime.errors import VideoError
from mambapose.runtime.video.sources import open_source

from .mutations import mutated
from .worker import check_line, serve

MOST_FRAMES = 200
PICTURES, SIZE = 12, (64, 48)
# Name, encoder, pixel format, format of FFmpeg, options of the muxer.
SEEDS: tuple[tuple[str, str, str, str | None, dict[str, str]], ...] = (
    ("a.mp4", "libx264", "yuv420p", None, {}),
    ("b.mp4", "libx264", "yuv420p", "mp4", {"movflags": "frag_keyframe+empty_moov"}),
    ("c.webm", "libvpx-vp9", "yuv420p", None, {}),
    ("d.gif", "gif", "rgb8", None, {}),
    ("e.avi", "mpeg4", "yuv420p", None, {}),
    ("f.mkv", "libx264", "yuv420p", None, {}),
    ("g.ts", "mpeg2video", "yuv420p", "mpegts", {}),
    ("h.mov", "mjpeg", "yuvj420p", None, {}),
    ("i.flv", "flv", "yuv420p", None, {}),
    ("j.mkv", "ffv1", "yuv420p", None, {}),
    ("k.y4m", "wrapped_avframe", "yuv420p", "yuv4mpegpipe", {}),
    ("l.ogv", "libtheora", "yuv420p", "ogg", {}),
    ("m.mpg", "mpeg1video", "yuv420p", "mpeg", {}),
    ("n.wmv", "wmv2", "yuv420p", "asf", {}),
    ("o.mp4", "mpeg4", "yuv420p", "mp4", {"movflags": "faststart"}),
)
LISTS = (
    b"ffconcat version 1.0\nfile neighbour\nfile other\n",
    b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nneighbour\n#EXT-X-ENDLIST\n",
    b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
)


def make_seeds(folder: Path) -> None:
    """Write the whole videos; encoders that this FFmpeg lacks are left out."""
    folder.mkdir()
    for name, codec, pix_fmt, form, options in SEEDS:
        try:
            _write(folder / name, codec, pix_fmt, form, options)
        except (av.error.FFmpegError, ValueError):
            (folder / name).unlink(missing_ok=True)
    for number, text in enumerate(LISTS):
        (folder / f"z{number}.mp4").write_bytes(text)


def _write(path: Path, codec: str, pix_fmt: str, form: str | None, options: dict[str, str]) -> None:
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", format=form, options=options) as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = *SIZE, pix_fmt
        for index in range(PICTURES):
            image = np.full((SIZE[1], SIZE[0], 3), 20 * index, np.uint8)
            image[index : index + 20, 10:40] = rng.integers(0, 255, (20, 30, 3), np.uint8)
            picture = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def case(number: int, folder: Path) -> bool:
    """Read the mutated video of a number; whether it could be opened."""
    rng = Random(number)
    seeds = sorted((folder / "seeds").iterdir())
    seed = seeds[number % len(seeds)]
    data = seed.read_bytes()
    path = folder / seed.name
    path.write_bytes(mutated(data, rng) if number >= len(seeds) else data)
    try:
        source = open_source(str(path))
    except VideoError as err:
        check_line(err)
        return False
    with source:
        last = -1.0
        try:
            for count, frame in enumerate(source):
                assert frame.image.shape == (*source.size, 3)
                assert frame.image.dtype == np.uint8
                assert math.isfinite(frame.timestamp)
                assert frame.timestamp > last
                last = frame.timestamp
                if count >= MOST_FRAMES:
                    break
        except VideoError as err:
            check_line(err)
        assert "\n" not in (source.problem or "")
    return True


if __name__ == "__main__":
    serve(sys.argv[1:], case)
