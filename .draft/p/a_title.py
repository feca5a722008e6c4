# %% [markdown]
# # World models: CartPole from pixels, solved inside its own dream
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/your-name/world-models-cartpole/blob/main/world_models_cartpole.ipynb)
#
# An agent sees a pole on a cart only as 64 × 64 pixels. From random play it learns a private simulator of that world: **V**, a variational autoencoder that says what is there, and **M**, an LSTM that says what happens next. Its controller **C** is then trained *wholly inside the simulator*, in dreams of 30 steps (0.6 s). At last it wakes up and plays the real CartPole-v1.
#
# | part | question |
# |---|---|
# | 1 The pole | what can be seen in a picture, and what not? |
# | 2 How this notebook works | which numbers can be changed, and how is finished work kept? |
# | 3 Collect | what does random play show of the world? |
# | 4 V | how do pixels become a short description? |
# | 5 M | what happens next? |
# | 6 Dreaming | how good, and how fast, is a dream? |
# | 7 C | how does one learn to act without acting? |
# | 8 Waking up | does it work in the real world? |
# | 9 When the dream lies | which dreams can be trusted, and what helps? |
# | 10 What is kept | things to try, troubleshooting, glossary, references |
#
# **Three ways to read.** *Look*: the outputs are here, read on. *Run*: run all cells; without a GPU that is the profile `quick`, and `USE_PRETRAINED` in part 2 takes V, M and C from our checkpoint instead of training them. *Change*: turn a knob in part 2 and run that cell and all that follow; only what depends on the knob is trained again. Any cell can be run again at any time.
#
# ⟦RESULT⟧
#
# You need Python, some PyTorch, and what a normal distribution is. Guess before you run, wherever it says **Predict**. The numbers in the text are those of the outputs you see. Yours will differ a little: compare what the plots say, not the digits.

# %% cellView="form" tags=["run"]
# @title The film: what the camera sees, what V redraws, what M dreams
from pathlib import Path

from IPython.display import Image as Picture
from IPython.display import display

title_film = Path("assets") / "quick_run" / "film.gif"  # of the run whose outputs you see
if title_film.exists():
    # Labelled "png": viewers that know no GIF label show it all the same, and every browser plays it.
    display(Picture(data=title_film.read_bytes(), format="png", width=320))

# %% [markdown]
# ## 1 · The pole
#
# A cart on a track carries a pole. Each 0.02 s the agent pushes the cart left or right. The episode ends when the pole leans more than 12°, when the cart's centre leaves the picture at ±2.4 m, or after 500 steps. Each step pays 1, so the return is the number of steps, and 500 is perfect.
#
# Most tutorials hand the agent four exact numbers: position $x$, velocity $\dot x$, angle $\theta$, angular velocity $\dot\theta$. Ours sees a picture. Why make life harder? Because a robot with a camera has pictures, and a world model only shows what it can do when the state has to be *found*.
#
# What is missing is installed first. (PyTorch and torchvision are never touched: those that your runtime came with fit its driver.) Then comes the real environment with its own renderer. We only shrink the picture and keep one channel.

# %% cellView="form" tags=["run"]
# @title Libraries: what is missing is installed, PyTorch is never touched
import importlib.util
import subprocess
import sys

needed = "torch torchvision gymnasium pygame datasets nevergrad scipy pydantic matplotlib ipywidgets safetensors tqdm".split()
missing = [name for name in needed if importlib.util.find_spec(name) is None]
if {"torch", "torchvision"} & set(missing):
    raise SystemExit("PyTorch and torchvision must be a pair of one build: install both (https://pytorch.org/get-started), then run this cell again.")
if missing:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *missing], check=True)
print("missing libraries:", ", ".join(missing) or "none")

# %% cellView="form" tags=["define"]
# @title Imports
import contextlib
import functools
import os
import platform
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

# There is no screen and no sound card: the renderer must know before gymnasium is imported.
os.environ.update({"SDL_VIDEODRIVER": "dummy", "SDL_AUDIODRIVER": "dummy", "PYGAME_HIDE_SUPPORT_PROMPT": "1"} | os.environ)
warnings.filterwarnings("ignore", category=UserWarning, module="pygame")

import datasets
import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import torch
from gymnasium.wrappers import AddRenderObservation, TransformObservation
from IPython.display import Image as Picture
from IPython.display import display
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize
from tqdm.auto import tqdm

# %% tags=["define"]
FRAME_SIZE = 64  # pixels; the networks below are built for 64 x 64
STACK = 4  # frames in one observation


def shrink(picture: np.ndarray) -> np.ndarray:
    """The renderer's picture (400, 600, 3) as one small grey frame (64, 64), uint8."""
    # The brown pole stands out most in the blue channel. Each small pixel is the mean of the area it covers,
    # so an edge that moves by a tenth of a pixel still changes a value.
    blue = Image.fromarray(np.ascontiguousarray(picture[:, :, 2]))
    return np.asarray(resize(blue, [FRAME_SIZE, FRAME_SIZE], InterpolationMode.BOX))


class StandStill(gym.Wrapper):
    """After an episode's end the world stands still until the next reset: where episodes run side by side, the longest decides how long it takes."""

    def reset(self, **how: Any) -> tuple[dict, dict]:
        """Start an episode; the same seed begins with the same state."""
        self.end = None
        return super().reset(**how)

    def step(self, action: int) -> tuple[dict, float, bool, bool, dict]:
        """One real step of 0.02 s."""
        if self.end is None:
            seen = super().step(int(action))
            self.end = seen if seen[2] or seen[3] else None  # terminated or truncated
            return seen
        return self.end


def pixel_cartpole(steps: int = 500) -> gym.Env:
    """The real CartPole-v1, seen through its own renderer, for at most so many steps.

    It shows `frame` (64, 64) uint8, which is all that V, M and C ever see, and `state` (4,) float32 (x in m, ẋ in m/s, θ in rad, θ̇ in rad/s), for measurements only."""
    env = AddRenderObservation(gym.make("CartPole-v1", render_mode="rgb_array", max_episode_steps=steps), False, render_key="frame", obs_key="state")
    frame, state = gym.spaces.Box(0, 255, (FRAME_SIZE, FRAME_SIZE), np.uint8), gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    small = TransformObservation(
        env, lambda seen: {"frame": shrink(seen["frame"]), "state": np.float32(seen["state"])}, gym.spaces.Dict({"frame": frame, "state": state})
    )
    return StandStill(small)


# %% tags=["run"]
pole = pixel_cartpole()
pole.reset(seed=3)
pole_frame = [pole.step(k % 2)[0]["frame"] for k in range(12)][-1]  # (64, 64) after twelve pushes, right and left in turn
plt.figure(figsize=(9, 3))
plt.subplot(1, 2, 1, title="what the camera sees: 600 × 400", xticks=[], yticks=[]).imshow(pole.render())
plt.subplot(1, 2, 2, title="what the agent sees: 64 × 64", xticks=[], yticks=[]).imshow(pole_frame, cmap="gray", vmin=0, vmax=255, aspect=1 / 1.5)
plt.show()

