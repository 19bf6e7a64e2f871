"""Show episodes of an agent, as a film or in a window."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.wrappers import HumanRendering
from PIL import Image
from stable_baselines3.common.base_class import BaseAlgorithm

from cet_rl.envs import make_env
from cet_rl.runs.files import replacing

DEFAULT_FPS = 30  # for environments without render_fps

Frame = npt.NDArray[np.uint8]
"""A picture, (height, width, 3)."""


def watch(
    agent: BaseAlgorithm, options: Mapping[str, Any], episodes: int, seed: int, video: Path | None = None
) -> list[float]:
    """Show deterministic episodes in the file `video`, or in a window if it is None; return their returns.

    The environment is `make_env(**options)`. Raises ValueError if it cannot be rendered.
    """
    task, wrappers = options["task"], [*options["wrappers"]]
    with closing(make_env(**options)) as env:
        modes = env.metadata.get("render_modes") or ()
    mode = "human" if video is None and "human" in modes else "rgb_array"
    if mode not in modes:
        raise ValueError(f"{task} cannot be shown: its environment has no render mode rgb_array")
    if video is None and mode != "human":
        wrappers.append(HumanRendering)
    returns: list[float] = []
    try:
        env = make_env(**{**options, "wrappers": wrappers}, render_mode=mode)
        frames = play(agent, env, episodes, seed, returns)
        first = next(frames)  # the first picture raises most errors of rendering
        pygame: Any = sys.modules.get("pygame")
        opened = video is None and pygame is not None and pygame.display.get_init()
        if opened and pygame.display.get_driver() == "offscreen" and "SDL_VIDEODRIVER" not in os.environ:
            raise RuntimeError("pygame finds no display")
    except (gym.error.Error, RuntimeError) as error:
        raise ValueError(f"{task} cannot be shown here: {error}") from error
    if video is None:
        deque(frames, 0)
    else:
        write_film(video, chain([first], frames), env.metadata.get("render_fps") or DEFAULT_FPS)
    env.close()
    return returns


def play(
    agent: BaseAlgorithm, env: gym.Env[Any, Any], episodes: int, seed: int, returns: list[float]
) -> Iterator[Any]:
    """Play deterministic episodes, and yield `env.render()` after each reset and each step.

    The seed is that of the first episode. The return of each episode is appended to `returns` at its end.
    """
    for episode in range(episodes):
        observation, _ = env.reset(seed=None if episode else seed)
        yield env.render()
        ended, total, state = False, 0.0, None
        start = np.ones(1, bool)  # for recurrent policies
        while not ended:
            action, state = agent.predict(observation, state, start, deterministic=True)
            observation, reward, terminated, truncated, _ = env.step(action)
            ended, start, total = terminated or truncated, np.zeros(1, bool), total + float(reward)
            yield env.render()
        returns.append(total)


def _checked(frames: Iterator[Frame]) -> Iterator[Frame]:
    size: tuple[int, ...] | None = None
    for frame in map(np.asarray, frames):
        size = size or frame.shape[:2]
        if frame.dtype != np.uint8 or frame.shape != (*size, 3):
            needs = "a film needs pictures of one size from `render`, uint8 (height, width, 3)"
            raise ValueError(f"{needs}, this environment's are {frame.dtype} {frame.shape}")
        yield frame


def write_film(file: Path, frames: Iterator[Frame], fps: float) -> None:
    """Write frames to a file: an animated GIF if its name ends in .gif, or MP4 (H.264) by imageio-ffmpeg.

    The file appears when it is complete. A GIF is kept in memory until then, one byte a pixel. Its frames last a
    whole number of hundredths of a second, at least two: browsers show shorter ones more slowly. Raises ValueError
    if the frames are no pictures of one size.
    """
    frames = _checked(frames)
    if file.suffix.lower() == ".gif":
        images = (Image.fromarray(frame).quantize(method=Image.Quantize.FASTOCTREE) for frame in frames)
        with replacing(file) as stream:
            # Pillow writes only what differs from the previous frame.
            each: Any = {"save_all": True, "append_images": images, "loop": 0, "optimize": False}
            next(images).save(stream, "GIF", duration=10 * max(2, round(100 / fps)), **each)
        return
    from imageio_ffmpeg import write_frames  # the extra `video`

    first = next(frames)
    temporary = file.with_name(f".{file.stem}.{os.getpid()}.tmp.mp4")
    try:
        size = first.shape[1], first.shape[0]
        film = write_frames(str(temporary), size, fps=fps, macro_block_size=2, ffmpeg_log_level="error")
        film.send(None)
        for frame in chain([first], frames):
            film.send(np.ascontiguousarray(frame))
        film.close()
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
