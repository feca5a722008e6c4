# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # World models: CartPole from pixels, solved inside its own dream
#
# <a href="https://colab.research.google.com/github/your-name/world-models-cartpole/blob/main/world_models_cartpole.ipynb"><img src="https://colab.research.google.com/assets/colab-badge.svg" alt="Open in Colab"/></a>
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
# | 10 The engineer's road | can a robot use it: smaller, guarded, over a network? |
# | 11 The student's road | is there a better pupil than C? PPO, and the dream's own gradient |
# | 12 The researcher's road | does a contrastive loss keep a dream true? |
# | 13 The frontier | do macro-actions let a dream look further? |
# | 14 Take the pole yourself | how long do your dream and reality agree? |
# | 15 A cousin that dreams in words | can an agent foresee what its tools will answer? |
# | 16 What was shown | and where to go: things to try, troubleshooting, glossary, references |
#
# **Three ways to read.** *Look*: the outputs are here, read on. *Run*: run all cells; without a GPU that is the profile `quick`, and `USE_PRETRAINED` in part 2 takes V, M and C from our checkpoint instead of training them. *Change*: turn a knob in part 2 and run that cell and all that follow; only what depends on the knob is trained again. Any cell can be run again at any time.
#
# **Result.** 500.0 of 500 on average over 100 real test episodes (so, with 95 % confidence, this controller fails in fewer than 3 of 100). It was trained on 44,355 real steps of random play and nothing else. 3,567 further real steps were watched and logged (19 of them by the control experiment), and nothing was chosen by what was seen. The settings were chosen on other seeds; but this one was run before, with earlier settings, and its open loop was one reason to go on.
#
# **Time.** `quick` took 14 minutes from nothing on two CPU cores that others share; the last cell that runs says so. `full` is the recipe's numbers. It has not been run to its end in this form, nor on a Colab T4.
#
# You need Python, some PyTorch, and what a normal distribution is. Guess before you run, wherever it says **Predict**. The numbers in the text are those of the outputs you see. Yours will differ a little: compare what the plots say, not the digits.

# %% cellView="form" alt="A film in three rows: the camera's cart and pole, V's redrawing of them, M's dream of them. All three move alike." tags=["run"]
# @title The film: what the camera sees, what V redraws, what M dreams
from pathlib import Path

from IPython.display import Image as Picture
from IPython.display import display

title_film = Path("assets") / "quick_run" / "film.png"  # of the run whose outputs you see
if title_film.exists():
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
import importlib.metadata
import subprocess
import sys
import time

from packaging.requirements import Requirement

began = time.time()
needed = """torch>=2.6 torchvision>=0.21 gymnasium>=1.1 pygame>=2.6 datasets>=4.0 nevergrad>=1.0.12
scipy>=1.11 pydantic>=2.7 matplotlib>=3.9 ipywidgets>=7.7 safetensors tqdm""".split()
installed = {library.name.lower(): library.version for library in importlib.metadata.distributions()}
wishes_of = {need: Requirement(need) for need in needed}
missing = [need for need, wish in wishes_of.items() if wish.name not in installed or not wish.specifier.contains(installed[wish.name], prereleases=True)]
if any(need.startswith("torch") for need in missing):
    raise SystemExit(f"Needed: {', '.join(missing)}. PyTorch and torchvision must be a pair of one build: see https://pytorch.org/get-started")
if missing and subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *missing]).returncode:
    raise SystemExit(f"pip could not install {', '.join(missing)}. In a terminal: {sys.executable} -m ensurepip, then pip; then run this cell again.")
print("missing libraries:", ", ".join(missing) or "none")

# %% cellView="form" tags=["define"]
# @title Imports
import contextlib
import functools
import os
import platform
import time
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
from IPython.display import HTML, display
from IPython.display import Image as Picture
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


def pixel_cartpole(steps: int = 500) -> gym.Env:
    """The real CartPole-v1, seen through its own renderer, for at most so many steps.

    It shows `frame` (64, 64) uint8, which is all that V, M and C ever see, and `state` (4,) float32 (x in m, ẋ in m/s, θ in rad, θ̇ in rad/s), for measurements only."""
    env = AddRenderObservation(gym.make("CartPole-v1", render_mode="rgb_array", max_episode_steps=steps), False, render_key="frame", obs_key="state")
    frame, state = gym.spaces.Box(0, 255, (FRAME_SIZE, FRAME_SIZE), np.uint8), gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    return TransformObservation(
        env, lambda seen: {"frame": shrink(seen["frame"]), "state": np.float32(seen["state"])}, gym.spaces.Dict({"frame": frame, "state": state})
    )


# %% alt="The camera's colour picture of cart and pole beside the grey picture of 64 by 64 pixels that the agent sees." tags=["run"]
pole = pixel_cartpole()
pole.reset(seed=3)
pole_frame = [pole.step(k % 2)[0]["frame"] for k in range(12)][-1]  # (64, 64) after twelve pushes, right and left in turn
plt.figure(figsize=(9, 3))
plt.subplot(1, 2, 1, title="what the camera sees: 600 × 400", xticks=[], yticks=[]).imshow(pole.render())
plt.subplot(1, 2, 2, title="what the agent sees: 64 × 64", xticks=[], yticks=[]).imshow(pole_frame, cmap="gray", vmin=0, vmax=255, aspect=1 / 1.5)
plt.show()

# %% [markdown]
# The small picture at the right is all that the agent will ever see: the dark block is the cart, the grey stick the pole.
#
# One function plays every episode of this notebook, whoever decides: a coin, a hand-written rule (which reads the true state), or the finished agent. Several environments run side by side, each in a process of its own.
#
# Each purpose for which the real environment is used has reset seeds of its own, and the test seeds serve the test only: nothing is ever tested on an episode that something was learned or chosen from.
#
# **Predict:** how many steps does a coin keep the pole up? And does one line of common sense reach 500?


# %% tags=["define"]
class Episode(NamedTuple):
    """One real episode of T steps."""

    seed: int
    frames: np.ndarray  # (T + 1, 64, 64) uint8
    states: np.ndarray  # (T + 1, 4) float32: x, ẋ, θ, θ̇; for measurements only
    actions: np.ndarray  # (T,) int64: 0 pushes left, 1 pushes right
    rewards: np.ndarray  # (T,) float32
    terminated: bool  # the pole fell or the cart left the screen
    truncated: bool  # 500 steps were over


def threads(count: int) -> contextlib.ExitStack:
    """Let PyTorch use so many threads, inside a `with`."""
    later = contextlib.ExitStack()
    later.callback(torch.set_num_threads, torch.get_num_threads())
    torch.set_num_threads(count)
    return later


@contextlib.contextmanager
def closing_for_sure(envs: gym.vector.VectorEnv) -> Iterator[None]:
    """End the processes of some environments after a `with`, whatever happened in it."""
    try:
        yield
        envs.close()
    finally:  # after an error or an interrupt one would wait for ever for answers that were already taken
        for process in getattr(envs, "processes", ()):
            process.kill()
            process.join()
        envs.closed = True


Policy = Callable[[np.ndarray, np.ndarray, np.ndarray, list], np.ndarray]


# %% tags=["define"]
def play(policy: Policy, seeds: list[int], workers: int, label: str | None = None, steps: int = 500) -> list[Episode]:
    """Play one real episode per seed, in the order of `seeds`, W at a time: W = `workers` environments side by side, each in a process of its own.

    `policy(fresh, frames, states, seeds)` decides for all of them at once: `fresh` (W,) is True where an episode has just begun, `frames` is
    (W, 64, 64) uint8, `states` (W, 4), `seeds` the W seeds; it returns W actions. The same seed and policy give the same episode. `label`: of the progress bar. `steps`: an episode is cut off then."""
    workers = min(workers, len(seeds))
    vector = gym.vector.AsyncVectorEnv if workers > 1 else gym.vector.SyncVectorEnv
    envs = vector([functools.partial(pixel_cartpole, steps)] * workers, autoreset_mode=gym.vector.AutoresetMode.DISABLED)
    waiting, places, begun, played = iter(range(len(seeds))), [0] * workers, [[] for _ in range(workers)], {}
    over = np.ones(workers, bool)  # (W,) whose environment is free for the next episode
    # One thread is enough for whoever decides: idle ones would take the cores from the renderers.
    with threads(1), closing_for_sure(envs), tqdm(total=len(seeds), desc=label, unit="episode", disable=label is None) as bar:
        while len(played) < len(seeds):
            fresh = over
            for k in np.flatnonzero(fresh):
                places[k], begun[k] = next(waiting, 0), []  # where no seed is left, the first is played again, for nothing
            crew = [seeds[place] for place in places]
            if fresh.any():
                seen, _ = envs.reset(seed=crew, options={"reset_mask": fresh})
            pushes, now = policy(fresh, seen["frame"], seen["state"], crew), seen
            seen, rewards, terminated, truncated, _ = envs.step(pushes)
            over = terminated | truncated  # (W,)
            for k in range(workers):
                begun[k].append((now["frame"][k], now["state"][k], pushes[k], rewards[k]))
                if over[k] and places[k] not in played:
                    frames, states, a, r = zip(*begun[k])
                    pictures, truth = np.stack([*frames, seen["frame"][k]]), np.stack([*states, seen["state"][k]])  # (T + 1, 64, 64), (T + 1, 4)
                    ends = bool(terminated[k]), bool(truncated[k])
                    played[places[k]] = Episode(crew[k], pictures, truth, np.array(a, np.int64), np.array(r, np.float32), *ends)
                    bar.update()
    return [played[place] for place in range(len(seeds))]


# %% tags=["define"]
class RandomPolicy:
    """Pushes left or right by a coin flip; the coin of an episode depends on its seed alone."""

    def __init__(self, seed: int) -> None:
        """`seed`: of the coins; each episode has one of its own."""
        self.seed, self.coins = seed, {}

    def __call__(self, fresh: np.ndarray, frames: np.ndarray, states: np.ndarray, seeds: list) -> np.ndarray:
        """One action (0 or 1) per environment, shape (W,)."""
        for k in np.flatnonzero(fresh):
            self.coins[k] = np.random.default_rng([self.seed, seeds[k]])
        return np.array([self.coins[k].integers(2) for k in range(len(frames))])


def hand_written_policy(fresh: np.ndarray, frames: np.ndarray, states: np.ndarray, seeds: list) -> np.ndarray:
    """Push to the side to which the pole leans and turns. It reads the true state, which V, M and C never do."""
    x, x_dot, theta, theta_dot = states.T
    return (theta + 0.5 * theta_dot > 0).astype(np.int64)


PURPOSES = ("random", "hand written", "check", "fresh", "test", "round", "remedies", "baselines", "roads")


def seeds_for(purpose: str, seed: int, count: int) -> list[int]:
    """Reset seeds for one of the PURPOSES (another is a ValueError). No two purposes share a seed, whatever the notebook's own seed is."""
    number = PURPOSES.index(purpose)  # purposes lie 100 million apart, and each takes a random stretch of consecutive seeds in its own range
    first = number * 100_000_000 + int(np.random.default_rng([seed, number]).integers(90_000_000))
    return list(range(first, first + count))


# %% cellView="form" tags=["define"]
# @title Figures and films
import io

from torchvision.utils import make_grid

# Colours by Okabe and Ito: colour-blind readers can tell them apart.
ORANGE, BLUE, GREEN, RED, PURPLE, GREY = "#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#666666"
STYLE = {
    "figure.facecolor": "white", "savefig.facecolor": "white", "figure.dpi": 88, "savefig.dpi": 88, "font.size": 12, "axes.grid": True, "axes.axisbelow": True, "axes.facecolor": "white",
    "text.color": "black", "axes.labelcolor": "black", "axes.edgecolor": "black", "axes.titlecolor": "auto", "xtick.color": "black", "ytick.color": "black", "xtick.labelcolor": "inherit", "ytick.labelcolor": "inherit", "grid.color": "#DDDDDD",
    "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 2, "legend.frameon": False, "legend.fontsize": 10, "image.cmap": "gray",
    "axes.prop_cycle": plt.cycler(color=[BLUE, ORANGE, GREEN, RED, PURPLE, GREY], ls=["-", "--", "-.", ":", "-", "--"]), "figure.constrained_layout.use": True,
}  # fmt: skip
PIXEL_SHAPE = 1.5  # a pixel of ours shows a piece of the world that is 1.5 times as wide as it is high: the camera's picture is 600 x 400
ROWS_DRAWN = slice(20, 58)  # pixel rows that pictures show: those in which something can move, and a margin


def plot(*panels: dict, title: str = "", size: tuple[float, float] = (5.2, 3.4)) -> None:
    """Draw panels side by side, `size` inches each. A panel is a dict: `lines` has label -> (x, y) or (x, y, matplotlib's format),
    `bars` heights, `levels` label -> y of a red dotted line; the rest is for `Axes.set`. A label that begins with _ is not shown."""
    figure, places = plt.subplots(1, len(panels), figsize=(size[0] * len(panels), size[1]), squeeze=False)
    for place, panel in zip(places[0], panels):
        for label, (x, y, *style) in panel.pop("lines", {}).items():
            place.plot(x, y, *style, label=label)
        for k, height in enumerate(panel.pop("bars", [])):
            place.bar(k, height, color=PURPLE)
        for label, y in panel.pop("levels", {}).items():
            place.axhline(y, color=RED, ls=":", lw=1.5, label=label)
        place.set(**panel)
        if place.get_legend_handles_labels()[1]:
            place.legend()
    figure.suptitle(title)
    plt.show()


def show_pictures(rows: dict[str, Tensor], title: str, columns: list[str] | None = None, across: slice = slice(8, 56)) -> None:
    """Draw rows of small pictures: name -> (n, H, W) in [0, 1]. `columns`: n short names. `across`: the pixel columns that are drawn."""
    pictures = torch.cat([torch.as_tensor(row).cpu().float() for row in rows.values()])[:, None, ROWS_DRAWN, across]  # (rows · n, 1, H, W)
    count, (high, wide) = len(pictures) // len(rows), pictures.shape[-2:]
    plt.figure(figsize=(0.75 * PIXEL_SHAPE * wide / high * count + 1.2, 0.75 * len(rows) + 0.7))
    plt.imshow(make_grid(pictures, nrow=count, padding=1, pad_value=1.0)[0], vmin=0, vmax=1, aspect=1 / PIXEL_SHAPE)
    plt.grid(False)
    plt.box(False)
    plt.yticks([(k + 0.5) * (high + 1) for k in range(len(rows))], list(rows))
    plt.xticks([(k + 0.5) * (wide + 1) for k in range(count)] if columns else [], columns or [])
    plt.tick_params(length=0, labeltop=True, labelbottom=False)
    plt.title(title)
    plt.show()


def film_of(frames: np.ndarray, milliseconds: int = 40, zoom: int = 2, greys: int = 24) -> bytes:
    """An endless animated PNG from (n, H, W) values in [0, 1]; all frames share one scale of greys, or a still picture would flicker."""
    size, frames = (round(frames.shape[2] * zoom * PIXEL_SHAPE), frames.shape[1] * zoom), np.round(frames * (greys - 1)).astype(np.uint8)
    pictures = [Image.fromarray(frame).resize(size, 0) for frame in frames]
    for picture in pictures:
        picture.putpalette([round(255 * k / (greys - 1)) for k in range(greys) for _ in range(3)])
    pictures[0].save(file := io.BytesIO(), "PNG", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0, optimize=True)
    return file.getvalue()


def show_film(frames: np.ndarray, caption: str) -> None:
    """Show frames (n, H, W) in [0, 1] as a moving picture that needs no video codec, with a line of text below."""
    display(Picture(data=film_of(frames), format="png", width=5 * frames.shape[2]))
    print(caption)


# %% alt="Eight frames of a random episode: the pole tips over from upright to the fall." tags=["run"]
plt.rcParams.update(STYLE)
coin_episode = play(RandomPolicy(123), seeds_for("random", 122, 1), 1)[0]
coin_pick = np.linspace(0, len(coin_episode.frames) - 1, 8).astype(int)
show_pictures({"coin": coin_episode.frames[coin_pick] / 255}, "A random episode, from the first frame to the fall", [f"step {k}" for k in coin_pick])

# %% [markdown]
# Eight frames of one random episode, cut to the rows in which something can move. The pole is down within half a second. Part 8 has the numbers: a coin lives 26.8 steps on average, and the one-line rule reaches 500 of 500. But the rule never looks at $x$, so nothing keeps its cart in the picture.
#
# **One frame has no velocity.** A pole that leans right may be falling or rising, and the picture is the same. So the observation $x_t$ stacks four frames, 0.06 s of history. How much velocity is in there? Less than one might think: each push changes the cart's velocity by 0.2 m/s at once, but its position only one step later. So even exact frames tell the velocity as it was before the last push. Remember this: it is what M's memory will have to add.
#
# <details><summary><b>Exercise 1.</b> Add x to the hand-written rule so that its cart stays near the centre. (Solution)</summary>
#
# `theta + 0.4 * theta_dot + 0.1 * x + 0.2 * x_dot > 0`. To move left, the rule first pushes right, so that the pole leans left, and then follows it. Part 5 lets this rule play.
# </details>

# %% [markdown]
# ## 2 · How this notebook works
#
# You can run this part without reading it, and come back when you want to change something. It has the settings, the form in which you choose a run, and the keeping of finished work.
#
# Every number that you might want to change lives in one tree, with its unit and what is allowed. A wrong name or value is refused at once, in a sentence that says what would be right. The settings follow **the recipe**, a list of numbers that this notebook set out to keep: 5,000 random episodes, four stacked frames, 64 latents, 10,000 and 20,000 training steps, dreams of 30 steps, 30 of them per candidate, 300 generations of CMA-ES. Its outline is Ha & Schmidhuber's, the numbers are no paper's. Where it leaves room, the choice is ours, and the text says why.

# %% cellView="form" tags=["define"]
# @title Settings
import math
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError


class Branch(BaseModel):
    """Settings that belong together: they can't be changed, and an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def but(self, **changes: Any) -> "Branch":
        """A copy with some fields changed."""
        return self.model_copy(update=changes)


class CollectSettings(Branch):
    """Real frames from a random policy."""

    episodes: int = Field(5_000, ge=4, le=100_000, description="random episodes to record")
    workers: int = Field(20, ge=1, le=64, description="environments that run side by side, each in its own process")


class TrainSettings(Branch):
    """What every network's training needs."""

    batch: int = Field(256, ge=2, le=65_536, description="examples per step: observations, sequences or steps")
    learning_rate: float = Field(1e-3, ge=1e-7, le=1.0, description="Adam's step size at its peak, per step")
    steps: int = Field(3_000, ge=1, le=10_000_000, description="gradient steps")


Width = Annotated[int, Field(ge=1, le=1024)]
Widths = Annotated[tuple[Width, Width, Width, Width], BeforeValidator(lambda text: text.split("-") if isinstance(text, str) else text)]


class VSettings(TrainSettings):
    """V, the variational autoencoder: stacked frames -> z."""

    latents: int = Field(64, ge=2, le=1024, description="dimensions of z")
    widths: Widths = Field((8, 16, 32, 64), description="channels of the four convolutions, from the image inwards, such as 8-16-32-64: 1 to 1024 each")
    steps: int = Field(10_000, ge=1, le=10_000_000, description="gradient steps")
    ramp_steps: int = Field(10_000, ge=1, le=10_000_000, description="steps over which the KL weight climbs from 0 to 1")
    max_shift: int = Field(4, ge=0, le=31, description="largest sideways shift of an observation or an episode, in pixels (1 pixel = 0.075 m)")
    law: float = Field(20.0, ge=0.0, le=1e9, description="weight of the shift law, in nats per e-fold of the share of z's change that breaks it; 0: no law")


class MSettings(TrainSettings):
    """M, the recurrent dynamics model, trained on real latents."""

    hidden: int = Field(256, ge=1, le=8192, description="size of h")
    copies: int = Field(6, ge=1, le=100, description="encoded copies of the data, all but the first with shifts and mirrors of their own")
    context: int = Field(16, ge=2, le=100, description="real steps that M reads before it speaks: at a dream's beginning and in the real world")
    window: int = Field(16, ge=2, le=500, description="steps per training sequence")
    batch: int = Field(64, ge=2, le=65_536, description="sequences per step")
    steps: int = Field(20_000, ge=1, le=10_000_000, description="gradient steps with teacher forcing")


class PracticeSettings(TrainSettings):
    """M's second training, in which it lives on its own predictions."""

    batch: int = Field(128, ge=2, le=65_536, description="sequences per step")
    steps: int = Field(16_000, ge=0, le=10_000_000, description="gradient steps; 0: no practice")
    alone: int = Field(16, ge=1, le=500, description="steps per sequence that M lives on its own predictions")


class CSettings(Branch):
    """C, the controller, and the dreams it learns in."""

    generations: int = Field(300, ge=1, le=1_000_000, description="CMA-ES generations (the recipe's epochs)")
    population: int = Field(32, ge=4, le=10_000, description="candidates per generation")
    rollouts: int = Field(30, ge=1, le=10_000, description="dreams per candidate and generation")
    horizon: int = Field(30, ge=1, le=1_000, description="steps per dream")
    temperature: float = Field(0.0, ge=0.0, le=10.0, description="τ, scales the standard deviation of the noise in dreams")
    mask_threshold: float = Field(0.01, ge=0.0, le=1.0, description="noise enters where M's variance exceeds this share of a dimension's variance")
    last_worth: float = Field(30.0, ge=0.0, le=10_000.0, description="worth, in steps, of surviving a dream in a familiar state; 0: only steps count")
    penalty: float = Field(3.0, ge=0.0, le=1_000.0, description="weight of the last state's squared distance from the data; 0: all are equally familiar")
    axes: int = Field(12, ge=1, le=96, description="directions of (z, h) in which C is searched: those whose future is easiest to tell")
    growing: int = Field(8, ge=0, le=96, description="and those in which small differences grow most")
    look_every: int = Field(500, ge=1, le=10_000_000, description="imagined updates (candidates evaluated) between two looks at the real world")
    look_episodes: int = Field(2, ge=1, le=1_000, description="real episodes per look, of at most 200 steps: logged, never used")


class RoundSettings(Branch):
    """A round of real data: C plays, M practises on what it saw."""

    episodes: int = Field(24, ge=1, le=10_000, description="real episodes that C plays")
    steps: int = Field(3_000, ge=1, le=10_000_000, description="gradient steps of M after it")


class EvaluateSettings(Branch):
    """Measurements and the final test."""

    episodes: int = Field(100, ge=2, le=10_000, description="test episodes, on seeds used nowhere else")
    baseline_episodes: int = Field(100, ge=1, le=10_000, description="episodes of the coin and of the hand-written rule")
    good_episodes: int = Field(16, ge=1, le=1_000, description="episodes of the centred rule, for measuring V and M")
    fresh_episodes: int = Field(400, ge=1, le=100_000, description="new random episodes, in part 9: recorded after M was trained")
    remedy_seeds: int = Field(2, ge=0, le=100, description="searches for C per remedy, in part 9; 0: its table comes from assets/experiments")


class Settings(Branch):
    """All settings of the notebook, one branch per part of the work."""

    seed: int = Field(123, ge=0, le=2**31 - 1, description="seed of everything random")
    collect: CollectSettings = CollectSettings()
    v: VSettings = VSettings()
    m: MSettings = MSettings()
    practice: PracticeSettings = PracticeSettings()
    verifier: TrainSettings = TrainSettings()
    c: CSettings = CSettings()
    round: RoundSettings = RoundSettings()
    evaluate: EvaluateSettings = EvaluateSettings()


# %% cellView="form" tags=["define"]
# @title Profiles, and settings from text
PROFILES = {
    # The recipe's numbers: the defaults in the tree above.
    "full": {},
    # The same experiment for two CPU cores: less data, fewer steps.
    "quick": {
        "collect.episodes": 2_000, "v.steps": 2_000, "v.ramp_steps": 1_500, "m.copies": 4, "m.hidden": 192, "m.steps": 1_500, "m.learning_rate": 2e-3, "practice.steps": 2_500,
        "practice.learning_rate": 2e-3, "verifier.steps": 1_000, "c.generations": 100, "round.episodes": 8, "round.steps": 200, "evaluate.baseline_episodes": 10, "evaluate.good_episodes": 8, "evaluate.remedy_seeds": 0,
    },
    # Every cell, from nothing, in a few minutes: for tests. Its numbers mean nothing.
    "smoke": {
        "collect.episodes": 40, "v.steps": 30, "v.ramp_steps": 20, "v.batch": 64, "m.hidden": 192, "m.steps": 30, "practice.steps": 10, "practice.batch": 16, "m.copies": 2,
        "m.batch": 16, "c.generations": 4, "c.population": 8, "c.rollouts": 6, "c.look_every": 16, "collect.workers": 2, "verifier.steps": 20, "verifier.batch": 32,
        "round.episodes": 2, "round.steps": 5, "evaluate.episodes": 4, "evaluate.baseline_episodes": 4, "evaluate.good_episodes": 2, "evaluate.fresh_episodes": 60, "evaluate.remedy_seeds": 1,
    },
}  # fmt: skip


def profile_name(profile: str) -> str:
    """The profile that `auto` stands for on this machine: full where there is CUDA, else quick. An unknown name is a ValueError."""
    if profile not in ("auto", *PROFILES):
        raise ValueError(f"unknown profile {profile!r}: choose one of auto, {', '.join(PROFILES)}")
    return profile if profile != "auto" else "full" if torch.cuda.is_available() else "quick"


def make_settings(profile: str, overrides: str = "") -> Settings:
    """The settings of a profile, with overrides such as `"m.hidden=128,c.horizon=15,seed=7"`; of two for one name the later wins.

    A ValueError has a line for each unknown name and each value that is not allowed, with what is allowed."""
    tree: dict[str, Any] = {}
    wishes = PROFILES[profile_name(profile)].copy()
    for part in filter(None, map(str.strip, overrides.split(","))):
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"override {name!r} is not of the form name=value (a comma separates two overrides: write 1000, not 1,000)")
        wishes[name.strip()] = value.strip()
    for name, value in wishes.items():
        branch, _, leaf = (f"{name}." if name in Settings.model_fields and name != "seed" else name).rpartition(".")
        place = tree.setdefault(branch, {}) if branch else tree
        if not isinstance(place, dict) or isinstance(place.get(leaf), dict):
            raise ValueError(f"{name} = {value!r} is not allowed: {(branch or leaf)!r} has a value of its own and nothing below it")
        place[leaf] = value
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise ValueError("\n".join(map(in_words, error.errors()))) from None


def switch(name: str) -> bool:
    """An environment variable that is on or off. ValueError: it says something else."""
    said = os.environ.get(name, "").strip().lower()
    if said not in ("", "1", "true", "yes", "on", "0", "false", "no", "off"):
        raise ValueError(f"{name}={said!r}: write 1, true, yes or on; or 0, false, no or off")
    return said in ("1", "true", "yes", "on")


def in_words(error: Any) -> str:
    """One of pydantic's findings as a sentence: which setting, which value, what is allowed."""
    *branch, leaf = [part for part in error["loc"] if isinstance(part, str)]
    name, fields = ".".join([*branch, leaf]).strip("."), type(getattr(Settings(), *branch) if branch else Settings()).model_fields
    if error["type"] == "extra_forbidden":
        return f"unknown setting {name!r}: the choices are {', '.join('.'.join([*branch, field]) for field in fields)}"
    ends = [str(getattr(limit, "ge", getattr(limit, "le", ""))) for limit in fields[leaf].metadata]
    return f"{name} = {error['input']!r} is not allowed: {error['msg']} ({fields[leaf].description}{'; allowed is ' * bool(ends)}{' to '.join(ends)})"


# %% [markdown]
# A profile is a list of changes to that tree. `full` is the recipe; `quick` is the same experiment for two CPU cores; `smoke` runs every cell in a few minutes, for tests. `auto` takes `full` if there is a GPU, else `quick`.
#
# **Finished work stays finished.** The long computations are *stages*. Each is done once and kept on disk, under a *key*: a fingerprint of its settings, of the code that it depends on (at any depth; comments and docstrings don't count), and of the keys of the stages before it. Change one of them and the stage runs again, and so does everything after it. A stage under way saves as it goes: to a side file first, which is then renamed, so that a save is there in full or not at all. What is loaded are tensors and plain values only (`weights_only=True`): a foreign file can't run code here.

# %% cellView="form" tags=["define"]
# @title What a stage depends on
import ast
import dis
import hashlib
import inspect
import io
import linecache
import textwrap
import tokenize
import types


@functools.cache  # a cell that is run again makes new functions, and so new entries
def plain_source(thing: Callable) -> str | None:
    """A function's or class's source without comments, docstrings and blank lines; None where it cannot be read.

    Text, not syntax trees: `ast.unparse` writes some code differently in each version of Python, and a key must not."""
    try:
        text = textwrap.dedent(source_of_class(thing) if inspect.isclass(thing) else inspect.getsource(thing))
        tree = ast.parse(text)
        comments = [token.start for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type == tokenize.COMMENT]
    except (OSError, TypeError, SyntaxError, tokenize.TokenError):
        return None
    lines = text.splitlines()
    for row, column in comments:
        lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node, clean=False) is not None:
            for number in range(node.body[0].lineno - 1, node.body[0].end_lineno):
                lines[number] = ""
    return "\n".join(line.rstrip() for line in lines if line.strip())


def source_of_class(kind: type) -> str:
    """A class's source, found through its methods: Python itself looks for a class in a module's file, and a notebook has none. OSError: it can't be read."""
    for part in vars(kind).values():
        if inspect.isfunction(part := inspect.unwrap(getattr(part, "__func__", part))):
            lines = linecache.getlines(part.__code__.co_filename)
            for node in ast.walk(ast.parse("".join(lines))):
                if isinstance(node, ast.ClassDef) and node.name == kind.__name__:
                    return "".join(lines[node.lineno - 1 : node.end_lineno])
    raise OSError(f"the source of {kind.__name__} cannot be read")


def bytecode(code: types.CodeType) -> str:
    """What a function does where its source cannot be read (a cell under `%%time`): its instructions, names and constants."""
    inner = [bytecode(part) if isinstance(part, types.CodeType) else repr(part) for part in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {inner}"


def is_plain(value: Any) -> bool:
    """Numbers, text, and lists, tuples and dicts: values whose text is the same in every run."""
    return value is None or isinstance(value, (bool, int, float, str, bytes, list, tuple, dict))


def names_in(code: types.CodeType) -> set[str]:
    """All global names that some code mentions, inner functions included; not attributes, which may share a name with something that comes later."""
    inner = (names_in(part) for part in code.co_consts if isinstance(part, types.CodeType))
    return {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}.union(*inner)


def code_of(function: Callable, *others: Any) -> str:
    """All code of this notebook that a function, and other functions or objects, depend on: their own, and that of whatever they name, at any depth.

    Plain values that code names count by value. Settings classes don't count (a stage's key holds the values), nor do modules and libraries."""
    scope, found, seen = inspect.unwrap(function).__globals__, [], set()
    waiting = [function, *(other if hasattr(other, "__qualname__") else type(other) for other in others)]
    while waiting:
        thing = inspect.unwrap(waiting.pop())  # a decorated function, a cached one too, counts as what it wraps
        if getattr(thing, "__module__", None) != scope["__name__"] or thing in seen or thing.__name__.endswith("Settings"):
            continue
        seen.add(thing)
        parts = vars(thing).items() if inspect.isclass(thing) else [("", thing)]
        parts = {name: inspect.unwrap(getattr(part, "__func__", None) or getattr(part, "fget", None) or part) for name, part in parts}
        functions = [part for part in parts.values() if inspect.isfunction(part) and part.__module__ == scope["__name__"]]
        defaults = [value for part in functions for value in [*(part.__defaults__ or ()), *(part.__kwdefaults__ or {}).values()]]
        text, bases = plain_source(thing), {base.__name__ for base in thing.__mro__[1:]} if inspect.isclass(thing) else set()
        if text is None:
            fixed = {name: part for name, part in [*parts.items(), *enumerate(defaults)] if is_plain(part) and not str(name).startswith("__")}
            text = "\n".join([repr(getattr(thing, "__annotations__", "")), repr(fixed), *(bytecode(part.__code__) for part in functions)])
        found.append(f"{thing.__qualname__}: {text}")
        names = bases.union(*(names_in(part.__code__) for part in functions))
        names.add(thing.__qualname__.split(".")[0])  # who made an inner function gave it its values
        named = {name: scope[name] for name in names & scope.keys() if not name.startswith("__")}
        found += [f"{name} = {value!r}" for name, value in named.items() if is_plain(value)]
        waiting += [value for value in [*named.values(), *defaults] if hasattr(value, "__qualname__")]
    return "\n".join(sorted(set(found)))


# %% cellView="form" tags=["define"]
# @title Saving: all of a file, or nothing
import shutil
import tempfile

UNFINISHED = "unfinished-"  # how the names of files and folders begin that are still being written


def usable_folder(folder: Path, variable: str = "WM_RUN_FOLDER") -> Path:
    """The folder, made if need be, and tried out. RuntimeError: it can't be used; the sentence says what to do."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise RuntimeError(f"{folder} can't be used ({error}). Set {variable} to a folder of yours, then run this cell again.") from error
    return folder


@contextlib.contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Turn what the disk says while `path` is written into a sentence that says what to do: a RuntimeError."""
    try:
        yield
    except OSError as error:
        raise RuntimeError(f"{path} could not be saved ({error}). Free some disk space, or set WM_RUN_FOLDER to another folder, then run again.") from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file: all of it or nothing, also when two kernels write at once or one is stopped. RuntimeError: the disk is full, say."""
    with room_for(path):
        side = usable_folder(path.parent) / f"{UNFINISHED}{os.getpid()}-{time.time_ns()}"  # a name of its own for each writer
        try:
            side.write_bytes(content)
            os.replace(side, path)
        finally:
            side.unlink(missing_ok=True)


def save(value: Any, path: Path) -> None:
    """Write tensors, numbers, strings, lists and dicts to `path`, as `write_whole` does."""
    torch.save(value, file := io.BytesIO())
    write_whole(path, file.getvalue())


def sweep(folder: Path, older_than: float = 3600.0) -> None:
    """Remove what a killed kernel has left half-written, somewhere in a folder of stages. What is younger (s) may be another kernel's work."""
    for left in folder.glob(f"*/{UNFINISHED}*"):
        if time.time() - left.stat().st_mtime > older_than:
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def set_aside(path: Path, error: Exception) -> None:
    """Rename a file or folder that is broken or not ours, and say so. Nothing is deleted."""
    aside = path.with_name(f"{path.name}.unreadable-{time.time_ns()}")
    with contextlib.suppress(OSError):
        os.replace(path, aside)
    print(f"{path.name} could not be used ({type(error).__name__}: {str(error)[:80]}). It was set aside as {aside.name}, and is made anew.")


def load(path: Path, *needed: str) -> dict | None:
    """What `save` wrote, if it is a dict with the needed names; None where there is nothing usable. A broken or foreign file is set aside."""
    if not path.is_file():
        return None
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)  # tensors and plain values only: a foreign file can't run code here
        if absent := [name for name in needed if not isinstance(value, dict) or name not in value]:
            raise KeyError(f"no {', '.join(absent)} in it")
        return value
    except Exception as error:
        return set_aside(path, error)


# %% cellView="form" tags=["define"]
# @title Stages: finished work stays finished
import json

QUIET = ("workers",)  # settings that change how a stage works, not what it computes


class Stage(NamedTuple):
    """A finished stage."""

    name: str
    key: str
    folder: Path
    seconds: float
    result: dict


class Progress:
    """The unfinished state of one stage, in the stage's own folder."""

    def __init__(self, folder: Path) -> None:
        """`folder`: where the stage keeps everything of its own."""
        self.folder, self.path, self.begin, self.before = folder, folder / "progress.pt", time.perf_counter(), 0.0

    def load(self) -> Any | None:
        """The last saved state, or None at a fresh start."""
        saved = load(self.path, "state", "seconds")
        self.before = saved["seconds"] if saved else 0.0
        return saved and saved["state"]

    def save(self, state: Any) -> None:
        """Save the state, and the seconds spent so far."""
        save({"state": state, "seconds": self.seconds()}, self.path)

    def seconds(self) -> float:
        """Seconds of work, those before an interruption included."""
        return self.before + time.perf_counter() - self.begin


def stage_key(function: Callable, inputs: tuple = (), after: tuple[Stage, ...] = (), **settings: Any) -> str:
    """Twelve hexadecimal digits that change when the settings, the code, or an earlier stage change."""
    values = {name: value.model_dump(mode="json") if isinstance(value, Branch) else value for name, value in settings.items() if name not in QUIET}
    text = json.dumps([values, code_of(function, *inputs), [stage.key for stage in after]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def keep(function: Callable[..., dict], *inputs: Any, after: tuple[Stage, ...] = (), name: str, **settings: Any) -> Stage:
    """Do a piece of work once; afterwards, take its result from the disk.

    Args:
        function: called as `function(progress, *inputs, **settings)`; returns a dict of tensors and plain values.
        inputs: ready for use; the stages in `after` made them, and their keys stand for them.
        settings: branches and plain values. They are part of the key, and so is all code that function and inputs depend on."""
    if name in PRETRAINED:
        print(f"{name}: {PRETRAINED[name].seconds:.0f} s of work, from the pretrained checkpoint")
        return PRETRAINED[name]
    key = stage_key(function, inputs, after, **settings)
    folder = RUN_FOLDER / f"{name}-{key}"
    done = load(folder / "result.pt", "result", "seconds")
    if done is None:
        progress = Progress(usable_folder(folder))
        result = function(progress, *inputs, **settings)
        done = {"result": result, "seconds": progress.seconds()}
        save(done, folder / "result.pt")
        progress.path.unlink(missing_ok=True)
    print(f"{name}: {done['seconds']:.0f} s of work, kept in {folder.name}")
    return Stage(name, key, folder, done["seconds"], done["result"])


# %% [markdown]
# **The shortcut.** Tick `USE_PRETRAINED`, and V, M and C come from our own run: you see every figure, every dream and the real test within minutes. (The profile `auto` then means `quick`, the checkpoint's own.) The checkpoint holds numbers only; a checksum says whether it arrived whole. Knobs of training, such as the horizon, then change only what is still measured.
#
# The form has the knobs that are worth playing with. An empty field means the profile's own value. After a change, run that cell and all that follows.

# %% cellView="form" tags=["define"]
# @title Shortcut: the pretrained checkpoint
import urllib.request

from safetensors import safe_open

REPOSITORY = "your-name/world-models-cartpole"  # the notebook's public home, as owner/name
REFERENCE = Path("assets") / "quick_run"  # what the authors' own run left behind
SHAPES = "v.latents v.widths m.hidden".split()  # what the sizes of the checkpoint's tensors depend on
LOOK_AROUND = "collect.episodes=300,evaluate.good_episodes=4,evaluate.episodes=10"  # with V, M and C at hand, fewer real episodes do


def load_checkpoint(path: Path, settings: Settings) -> dict[str, Stage]:
    """The stages that `save_checkpoint` wrote, by name: tensors and JSON, nothing in the file is ever run. A foreign file, or one of other sizes, is a ValueError."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["about"])
            values = about["values"] | {name: file.get_tensor(name) for name in file.keys()}
        theirs = {name: functools.reduce(dict.get, name.split("."), about["settings"]) for name in [*SHAPES, "seed"]}
        results: dict[str, dict] = {name: {} for name in about["seconds"]}
        for full_name, value in values.items():
            stage, *places, last = full_name.split("/")
            functools.reduce(lambda place, part: place.setdefault(part, {}), places, results[stage])[last] = value
    except Exception as error:
        raise ValueError(f"{path.name} is not a checkpoint of this notebook ({type(error).__name__}: {str(error)[:200]})") from error
    ours = {name: functools.reduce(dict.get, name.split("."), settings.model_dump(mode="json")) for name in SHAPES}
    other = [f"{name} = {theirs[name]} (the settings ask for {ours[name]})" for name in SHAPES if theirs[name] != ours[name]]
    if other:
        raise ValueError(f"{path.name} was made with {', '.join(other)}")
    key = f"pretrained-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}-seed-{theirs['seed']}"
    return {name: Stage(name, key, path.parent, about["seconds"][name], result) for name, result in results.items()}


def find_pretrained(settings: Settings) -> dict[str, Stage]:
    """The stages of the shipped checkpoint, from `assets/` or from the repository; empty, and a sentence, where that fails."""
    folder = REFERENCE if (REFERENCE / "checkpoint.safetensors").exists() else RUN_FOLDER / "pretrained"
    try:
        for name in ("manifest.json", "checkpoint.safetensors") if folder != REFERENCE else ():
            address = f"https://raw.githubusercontent.com/{REPOSITORY}/main/{REFERENCE.as_posix()}/{name}"
            with urllib.request.urlopen(address, timeout=30) as answer:
                write_whole(folder / name, answer.read())
        wanted = json.loads((folder / "manifest.json").read_text())["checkpoint_sha256"]
        found = hashlib.sha256((folder / "checkpoint.safetensors").read_bytes()).hexdigest()
        if found != wanted:
            raise ValueError(f"its checksum is {found[:12]}…, but the manifest says {wanted[:12]}…")
        return load_checkpoint(folder / "checkpoint.safetensors", settings)
    except (OSError, ValueError, KeyError) as error:
        print(f"The pretrained checkpoint can't be used ({error}). No harm done: the notebook trains its own V, M and C.")
        return {}


# %% cellView="form" tags=["run"]
# @title Choose a run. After a change, run this cell and what follows
PROFILE = os.environ.get("WM_PROFILE", "auto")  # @param ["auto", "smoke", "quick", "full"] {allow-input: true}
HIDDEN_SIZE_OF_M = ""  # @param {type:"string"}
DREAM_HORIZON = ""  # @param {type:"string"}
DREAM_TEMPERATURE = ""  # @param {type:"string"}
RANDOM_EPISODES = ""  # @param {type:"string"}
SEED = ""  # @param {type:"string"}
USE_PRETRAINED = switch("WM_USE_PRETRAINED")  # @param {type:"boolean"}
USE_GOOGLE_DRIVE = False  # @param {type:"boolean"}

if USE_PRETRAINED and PROFILE == "auto":
    PROFILE = "quick"  # the checkpoint's own
form = {"m.hidden": HIDDEN_SIZE_OF_M, "c.horizon": DREAM_HORIZON, "c.temperature": DREAM_TEMPERATURE, "collect.episodes": RANDOM_EPISODES, "seed": SEED}
wishes = [f"{name}={value}" for name, value in form.items() if str(value).strip()] + [os.environ.get("WM_OVERRIDES", "")]
settings, DEVICE = make_settings(PROFILE, ",".join(wishes)), torch.device("cuda" if torch.cuda.is_available() else "cpu")
if USE_GOOGLE_DRIVE:  # it outlives a Colab session
    from google.colab import drive

    drive.mount("/content/drive")
home_folder = "/content/drive/MyDrive/world_models_cartpole" if USE_GOOGLE_DRIVE else os.environ.get("WM_RUN_FOLDER", "runs")
RUN_FOLDER = usable_folder(Path(home_folder) / profile_name(PROFILE))
sweep(RUN_FOLDER)
PRETRAINED = find_pretrained(settings) if USE_PRETRAINED else {}
if PRETRAINED:
    settings = make_settings(PROFILE, ",".join([LOOK_AROUND, *wishes]))
torch.set_float32_matmul_precision("high")
datasets.disable_progress_bars()
print(f"profile {profile_name(PROFILE)}, seed {settings.seed}, device {DEVICE.type}, Python {platform.python_version()}, PyTorch {torch.__version__}")
print(f"pretrained: {', '.join(PRETRAINED) or 'nothing'}; {settings.collect.episodes:,} random and {settings.evaluate.episodes} test episodes")

# %% [markdown]
# ## 3 · Collect: what a coin flip sees
#
# The agent's whole experience of reality: episodes of a random policy. Each becomes one row of a Hugging Face `Dataset` on disk, frames and actions together. The true states are stored too, for measurements; no network reads them. They are recorded in parts, so that an interruption costs one part at most.
#
# **Predict:** a random episode starts upright. After how many of the 20 ms steps will half of the poles have fallen?

# %% cellView="form" tags=["define"]
# @title Episodes on disk
datasets.config.TORCHVISION_AVAILABLE = False  # we store no videos, and some versions of both do not fit each other

FEATURES = datasets.Features({
    "seed": datasets.Value("int64"), "frames": datasets.Array3D((None, FRAME_SIZE, FRAME_SIZE), "uint8"), "states": datasets.Array2D((None, 4), "float32"),
    "actions": datasets.Sequence(datasets.Value("int8")), "rewards": datasets.Sequence(datasets.Value("float32")),
    "terminated": datasets.Value("bool"), "truncated": datasets.Value("bool"),
})  # fmt: skip
CARD = """---
{{license: mit, pretty_name: "CartPole-v1 from pixels, {policy}"}}
---
{episodes} episodes ({steps} steps) of gymnasium's CartPole-v1, rendered by the environment itself. One row is one episode of T steps.

- `seed`: the environment's reset seed; `frames`: (T + 1, 64, 64) uint8, blue channel, area-averaged from 600 x 400
- `states`: (T + 1, 4) float32, x (m), x_dot (m/s), theta (rad), theta_dot (rad/s); for measurements only, nothing is trained on it
- `actions`: (T,) 0 left, 1 right; `rewards`: (T,) always 1; `terminated`: the pole fell or the cart left the picture; `truncated`: 500 steps were over
"""


def checksum(folder: Path) -> str:
    """SHA-256 over the data files of a saved dataset."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.glob("*.arrow")))).hexdigest()


def write_dataset(episodes: list[Episode], folder: Path, policy: str) -> None:
    """Save episodes as a Hugging Face Dataset with explicit features, one row per episode, and a card beside it: all of it, or nothing."""
    rows = [{**episode._asdict(), "actions": episode.actions.astype(np.int8)} for episode in episodes]
    with room_for(folder), tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder.parent, ignore_cleanup_errors=True) as place:
        # Kept in memory: a file that is still mapped can't be removed on Windows.
        made = datasets.Dataset.from_generator(lambda: iter(rows), features=FEATURES, cache_dir=f"{place}/cache", keep_in_memory=True)
        made.save_to_disk(f"{place}/data")
        card = CARD.format(policy=policy, episodes=len(episodes), steps=sum(len(episode.actions) for episode in episodes))
        Path(place, "data", "README.md").write_text(card)
        Path(place, "data", "sha256").write_text(checksum(Path(place, "data")))
        try:
            os.rename(f"{place}/data", folder)
        except OSError:
            if not folder.exists():  # else another kernel was faster
                raise


def read_dataset(folder: Path) -> list[Episode]:
    """The episodes of one saved dataset. ValueError: a byte is not as it was written."""
    if (folder / "sha256").read_text() != checksum(folder):
        raise ValueError("its checksum differs")
    dataset = datasets.load_from_disk(str(folder), keep_in_memory=True)
    # Left alone, the format turns every byte into eight: ask for bytes.
    pictures = dataset.with_format("numpy", columns=["frames"], dtype=np.uint8)
    others = dataset.remove_columns("frames").with_format("numpy")
    plain = {"seed": int, "terminated": bool, "truncated": bool, "actions": np.int64, "states": np.asarray, "rewards": np.asarray}  # each column's own kind
    return [Episode(**picture, **{name: plain[name](value) for name, value in row.items()}) for picture, row in zip(pictures, others)]


# %% tags=["define"]
PART = 500  # episodes that are recorded and saved at a time


def record(progress: Progress, policy: Policy, *, purpose: str, episodes: int, seed: int, workers: int) -> dict:
    """The stage that lets a policy play episodes on the seeds of one purpose. Each part is saved: an interruption costs one at most."""
    seeds = seeds_for(purpose, seed, episodes)
    parts = {f"episodes-{first:06d}": seeds[first : first + PART] for first in range(0, episodes, PART)}
    for name, part in parts.items():
        if not (progress.folder / name).exists():
            write_dataset(play(policy, part, workers, purpose), progress.folder / name, purpose)
    return {"parts": list(parts)}


def recorded(policy: Policy, function: Callable = record, after: tuple[Stage, ...] = (), **how: Any) -> tuple[Stage, list[Episode]]:
    """Keep the stage of a function that records, and read its episodes; a part that can't be read is set aside and recorded anew, once."""
    for last_try in (False, True):
        stage, episodes = keep(function, policy, after=after, name=how["purpose"].replace(" ", "-"), **how), []
        folder = stage.folder
        try:
            for folder in (stage.folder / part for part in stage.result["parts"]):
                episodes += read_dataset(folder)
            return stage, episodes
        except Exception as error:
            if last_try:
                raise
            set_aside(folder, error)
            set_aside(stage.folder / "result.pt", error)


# %% tags=["run"]
collect_settings = {"purpose": "random", "episodes": settings.collect.episodes, "seed": settings.seed, "workers": settings.collect.workers}
collect, random_episodes = recorded(RandomPolicy(settings.seed), **collect_settings)
random_lengths = [len(episode.actions) for episode in random_episodes]
random_steps = sum(random_lengths)
print(f"{len(random_episodes):,} random episodes, {random_steps:,} real steps, median length {np.median(random_lengths):.0f}, longest {max(random_lengths)}")

# %% [markdown]
# Half of the poles are down after 18 steps, 0.36 s, and no episode is longer than 121.
#
# **Predict:** the picture is 4.8 m wide. How much of it does a coin visit?

# %% alt="Dots of position against angle in random play: a narrow strip around position 0, with angles up to the fall." tags=["run"]
random_states = np.concatenate([episode.states for episode in random_episodes])  # (N, 4)
inside = np.quantile(np.abs(random_states[:, 0]), 0.99)
plt.figure(figsize=(7, 3.4))
plt.hexbin(random_states[:, 0], np.degrees(random_states[:, 2]), gridsize=60, bins="log", cmap="viridis", extent=(-2.4, 2.4, -16, 16), mincnt=1)
plt.colorbar(label="frames")
plt.hlines([-12, 12], -2.4, 2.4, color=RED, ls="--", label="the episode ends")
plt.gca().set(xlabel="cart position x (m)", ylabel="pole angle θ (degrees)", title="Where random play goes", ylim=(-18, 23))
plt.legend(loc="upper left")
plt.show()
print(f"99 % of the random frames lie within {inside:.2f} m of the centre; the picture reaches to 2.4 m")


# %% [markdown]
# A narrow strip. The angle is covered up to the fall, the position hardly at all: the pole falls before the cart gets anywhere. A controller that balances for ten seconds may drift out of this strip, and there V and M would have to guess. But the picture itself offers a way around this trap. The background is uniform, so **a whole episode shifted sideways is a valid episode**, and so is its mirror image with the two actions swapped. Both cost nothing. We keep a shift constant over an episode, or it would look like motion.
#
# (The end of the track is *not* shifted along: our model never learns that the picture has an end. What keeps the cart in the middle comes later, in C.)
#
# All frames go to the device once, as bytes. A stack of four frames, a shift, a mirror image: each is only another choice of indices.


# %% tags=["define"]
class Memory:
    """N frames of E episodes laid end to end in a few flat tensors, ready for index arithmetic: a stack of four frames is never stored, it is four row numbers."""

    def __init__(self, episodes: list[Episode], max_shift: int, device: torch.device, own: int = 0) -> None:
        """`max_shift`: the largest sideways shift, in pixels, that `stack` will be asked for. `own`: so many last episodes are the controller's own, and half of all draws fall on them."""
        self.episodes, self.device, self.max_shift = episodes, device, max_shift
        lengths = torch.tensor([len(episode.frames) for episode in episodes])
        frames = torch.from_numpy(np.concatenate([episode.frames for episode in episodes]))
        # Padded at both sides with its own edge column, so that a sideways shift is only another choice of columns.
        pad = [frames[:, :, :1].expand(-1, -1, max_shift), frames, frames[:, :, -1:].expand(-1, -1, max_shift)]
        self.padded = torch.cat(pad, 2).to(device)  # (N, 64, 64 + 2·shift) uint8
        # The last frame of an episode has no action; it gets 0 and is never used as the start of a step.
        self.actions = torch.from_numpy(np.concatenate([np.append(episode.actions, 0) for episode in episodes])).to(device)  # (N,)
        self.rewards = torch.from_numpy(np.concatenate([np.append(episode.rewards, 0) for episode in episodes])).float().to(device)  # (N,)
        self.states = torch.from_numpy(np.concatenate([episode.states for episode in episodes])).to(device)  # (N, 4)
        self.rows = torch.arange(len(frames), device=device)  # (N,)
        self.episode = torch.repeat_interleave(torch.arange(len(episodes)), lengths).to(device)  # (N,)
        ends = lengths.cumsum(0).to(device)
        self.first, self.last = (ends - lengths.to(device))[self.episode], (ends - 1)[self.episode]  # (N,) each: first and last row of the row's episode
        # A pole that fell counts as an end; a clock that ran out (truncation) does not.
        terminated = torch.tensor([episode.terminated for episode in episodes], device=device)
        self.done = terminated[self.episode] & (self.rows == self.last)  # (N,)
        is_own = self.episode >= len(episodes) - own  # (N,)
        self.weight = torch.where(is_own, 1 / is_own.sum().clamp(min=1), 1 / (~is_own).sum().clamp(min=1)).double()  # (N,) of a row in a draw

    def __len__(self) -> int:
        """The number of frames, N."""
        return len(self.padded)

    def draw(self, rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """`count` of some rows at random, by their weights; the generator lives on the CPU."""
        levels = self.weight[rows].cumsum(0)
        return rows[
            torch.searchsorted(levels, levels[-1] * torch.rand(count, generator=generator, dtype=torch.float64).to(self.device)).clamp(max=len(rows) - 1)
        ]

    def stack(self, rows: Tensor, shift: Tensor | None = None, mirror: Tensor | None = None, band: slice = slice(None)) -> Tensor:
        """The observations x_t for row numbers (B,): (B, 4, 64, 64) float32 in [0, 1], the newest frame last; before the start of an episode its frame 0 is repeated.

        `shift`: (B,) whole pixels, up to max_shift (an index error beyond), to the left. `mirror`: (B,) True flips left and right. `band`: the pixel rows wanted."""
        back = torch.arange(STACK - 1, -1, -1, device=self.device)
        rows = torch.maximum(rows[:, None] - back, self.first[rows][:, None])  # (B, 4)
        columns = (torch.arange(FRAME_SIZE, device=self.device) + self.max_shift).expand(len(rows), -1)  # (B, 64)
        columns = columns if shift is None else columns + shift[:, None]
        columns = columns if mirror is None else torch.where(mirror[:, None], columns.flip(-1), columns)
        wide = self.padded[:, band][rows]  # (B, 4, 64, 64 + 2·shift) uint8
        return wide.gather(3, columns[:, None, None].expand(-1, STACK, wide.shape[2], -1)).float() / 255  # (B, 4, 64, 64)


# %% alt="Two observations of four frames each, one from the start of an episode, one from its end." tags=["run"]
memory = Memory(random_episodes, settings.v.max_shift, DEVICE)
two_steps = {f"step {row}": memory.stack(torch.tensor([row], device=DEVICE))[0] for row in (0, int(memory.last[0]))}  # (4, 64, 64) each
show_pictures(two_steps, "Two observations", ["t − 3", "t − 2", "t − 1", "t"])
print(f"{len(memory):,} frames, {memory.padded.numel() / 1e6:.0f} MB on {DEVICE.type}")

# %% [markdown]
# Two observations, at the very start of an episode (its first frame repeated) and at its end. The change from picture to picture is all that they say about speed.
#
# <details><summary><b>Exercise 2.</b> We shift a whole episode by the same number of pixels. What would the agent see if each frame had a shift of its own, of one pixel at most? (Solution)</summary>
#
# A pixel is 0.075 m and a step is 0.02 s, so one pixel between two frames looks like a velocity of 3.75 m/s. A single push changes the velocity by 0.2 m/s. The stack would show noise where it should show motion.
# </details>

# %% [markdown]
# ## 4 · V: what do I see?
#
# V turns an observation $x$ (four frames, 16,384 numbers) into $z$, 64 numbers from which the observation can be drawn again. It is a variational autoencoder: an encoder $q(z \mid x) = \mathcal N(\mu(x), \sigma^2(x))$, a prior $p(z) = \mathcal N(0, I)$, a decoder $p(x \mid z)$.
#
# **Why not a plain autoencoder?** Because M will have to predict $z$, and C to read it. Noise in $z$ forces similar pictures to lie near each other, and the price on information keeps out what does not help to draw.
#
# Two things make V learn fast. It works on the *difference to the mean picture*, so that all that never moves is exactly 0. And it looks only at the band of rows where anything can move at all; outside, the mean picture is already right.

# %% tags=["define"]
import torch.nn.functional as F

BAND = slice(24, 56)  # the rows in which something can move; the other half of the picture never changes
PIXEL_SCALE = 8.0  # brings the differences to the mean picture near unit size


def down(channels_in: int, channels_out: int) -> nn.Sequential:
    """A convolution that halves height and width."""
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 4, 2, 1), nn.BatchNorm2d(channels_out), nn.ReLU())


def up(channels_in: int, channels_out: int) -> nn.Sequential:
    """A transposed convolution that doubles height and width."""
    return nn.Sequential(nn.ConvTranspose2d(channels_in, channels_out, 4, 2, 1), nn.BatchNorm2d(channels_out), nn.ReLU())


# %% tags=["define"]
class V(nn.Module):
    """A convolutional VAE: x (B, 4, 64, 64) in [0, 1] -> z (B, Z), after Kingma & Welling (2014) and Ha & Schmidhuber (2018), appendix A.1."""

    def __init__(self, settings: VSettings, mean_picture: Tensor | None = None) -> None:
        """`mean_picture`: (64, 64) mean of the training frames. V works on the difference to it: what never moves is 0 then."""
        super().__init__()
        a, b, c, d = self.widths = settings.widths
        # With the band's 32 rows: (B, 4, 32, 64) -> (B, a, 16, 32) -> (B, b, 8, 16) -> (B, c, 4, 8) -> (B, d, 2, 4).
        self.encoder = nn.Sequential(down(STACK, a), down(a, b), down(b, c), down(c, d))
        self.to_posterior = nn.Linear(8 * d, 2 * settings.latents)
        self.from_z = nn.Linear(settings.latents, 8 * d)
        self.decoder = nn.Sequential(up(d, c), up(c, b), up(b, a), nn.ConvTranspose2d(a, STACK, 4, 2, 1))
        self.register_buffer("mean_picture", torch.zeros(FRAME_SIZE, FRAME_SIZE) if mean_picture is None else mean_picture)
        # Channels last in memory: on a CPU this saves a good part of the time of a convolution.
        self.to(memory_format=torch.channels_last)

    def normalise(self, x: Tensor) -> Tensor:
        """Pixels (B, 4, 64, 64) in [0, 1], or only their band (B, 4, 32, 64) -> the band as differences to the mean picture, (B, 4, 32, 64)."""
        band = x[:, :, BAND] if x.shape[2] == FRAME_SIZE else x
        return ((band - self.mean_picture[BAND]) * PIXEL_SCALE).contiguous(memory_format=torch.channels_last)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """μ and log σ² of the posterior q(z | x), each (B, Z), for pixels x as in `normalise`."""
        return self.encode_normalised(self.normalise(x))

    def encode_normalised(self, band: Tensor) -> tuple[Tensor, Tensor]:
        """μ and log σ², each (B, Z), for an already normalised band (B, 4, 32, 64)."""
        features = self.encoder(band).contiguous().flatten(1)  # (B, 8d)
        mu, log_var = self.to_posterior(features).float().chunk(2, -1)  # (B, Z) each
        return mu, log_var.clamp(-14, 3)

    def decode_normalised(self, z: Tensor) -> Tensor:
        """The mean of p(x | z) as a normalised band, (B, 4, 32, 64), for z (B, Z)."""
        features = F.relu(self.from_z(z)).unflatten(1, (self.widths[-1], 2, 4))  # (B, d, 2, 4)
        return self.decoder(features.contiguous(memory_format=torch.channels_last))

    def decode(self, z: Tensor) -> Tensor:
        """The mean of p(x | z) as pictures in [0, 1], (B, 4, 64, 64)."""
        x = self.mean_picture.expand(len(z), STACK, -1, -1).clone()  # (B, 4, 64, 64)
        x[:, :, BAND] += self.decode_normalised(z) / PIXEL_SCALE
        return x.clamp(0, 1)


# %% [markdown]
# ### The ELBO, from one inequality
#
# We want a high $\log p(x)$, but the integral over $z$ is out of reach. For any $q$, Jensen's inequality gives
#
# $$\log p(x) = \log \mathbb E_{q(z\mid x)}\!\left[\frac{p(x\mid z)\,p(z)}{q(z\mid x)}\right] \;\ge\; \underbrace{\mathbb E_{q(z\mid x)}[\log p(x\mid z)]}_{\text{how well is } x \text{ drawn}} \;-\; \underbrace{\mathrm{KL}\!\left(q(z\mid x)\,\|\,p(z)\right)}_{\text{how much is said about } x}$$
#
# With normal distributions the second term is a sum over the latent dimensions, $\tfrac12\sum_j(\mu_j^2+\sigma_j^2-1-\log\sigma_j^2)$. For the first term we need the decoder's noise $\sigma_x$. Most code sets it by hand, without saying so, as a "β". Rybkin et al. (σ-VAE) solve for it: the best $\sigma_x^2$ is the mean squared error itself, and then $-\log p(x\mid z) = \tfrac D2\log\mathrm{MSE} + \text{const}$, with $D$ the number of pixels that are drawn. No weight is left to tune between the two terms: a KL weight of 1 is a true ELBO. Mind the **sums** over pixels and latent dimensions, and the mean over the batch.
#
# The KL weight climbs from 0 to 1 during training, so that V first learns to draw and then to be brief. (In `full` the climb takes all 10,000 steps, as in the recipe.)


# %% tags=["define"]
def kl_to_normal(mu: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)) in nats, element by element: ½ (μ² + σ² − 1 − log σ²)."""
    return 0.5 * (mu.square() + log_var.exp() - 1 - log_var)


def sample(mu: Tensor, log_var: Tensor, noise: Tensor) -> Tensor:
    """z = μ + σ·ε, the reparametrisation trick."""
    return mu + (0.5 * log_var).exp() * noise


def elbo(v: V, x: Tensor, noise: Tensor, kl_weight: float) -> tuple[dict[str, Tensor], Tensor]:
    """The negative ELBO with the decoder variance at its optimum (σ-VAE, Rybkin et al. 2021, eq. 6): σ² is the batch's mean squared error.

    For observations x as in `V.normalise` and standard normal noise (B, Z). Returns, in nats per observation (sums over pixels and latent dimensions, mean over
    the batch): `loss` = reconstruction + kl_weight · kl, `reconstruction` = −log p(x | z) up to a constant, `kl`, and `error` = σ²; and the codes μ (B, Z)."""
    band = v.normalise(x)  # (B, 4, 32, 64)
    mu, log_var = v.encode_normalised(band)
    y = v.decode_normalised(sample(mu, log_var, noise)).float()  # (B, 4, 32, 64)
    error = F.mse_loss(y, band)
    reconstruction = 0.5 * band[0].numel() * torch.log(error + 1e-8)
    kl = kl_to_normal(mu, log_var).sum(1).mean()
    return {"loss": reconstruction + kl_weight * kl, "reconstruction": reconstruction, "kl": kl, "error": error}, mu


# %% tags=["run"]
by_hand = kl_to_normal(torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.0, 0.0, math.log(0.25)]))
print([round(nats, 3) for nats in by_hand.tolist()])

# %% [markdown]
# The check can be worked out by hand: a standard normal costs 0 nats (1 nat is 1.44 bits), a mean of 1 costs ½, and a deviation of ½ costs ½ (¼ − 1 − log ¼) = 0.318.
#
# One training loop serves V, M and the verifier. It saves as it goes, the random generator's state included, so that an interrupted run ends with the same weights as an uninterrupted one. Before each step it could use one thread or all of them. Which is faster depends on what else the machine is doing, so `Pace` asks the clock.

# %% cellView="form" tags=["define"]
# @title As many threads as are faster now
SLOW = 2.0  # three steps in a row that take so many times as long as in the trial: the machine has changed


class Pace:
    """Chooses between one thread and all of them, by the clock: two real steps with one thread, two with all. On a GPU there is no choice."""

    def __init__(self, device: torch.device) -> None:
        """`device`: where the steps are computed."""
        self.choices = (1, torch.get_num_threads()) if device.type == "cpu" else (torch.get_num_threads(),)
        self.look()

    def look(self) -> None:
        """Time the choices again, from the next step on."""
        self.trials = [count for count in self.choices for _ in range(2)]
        self.seconds, self.slow = dict.fromkeys(self.choices, math.inf), 0  # threads -> the quicker one of its trials

    def step(self, work: Callable[[], Any]) -> Any:
        """Do one step of training, and return what it returns."""
        count, begin = self.trials[0] if self.trials else min(self.seconds, key=self.seconds.get), time.perf_counter()
        with threads(count):
            result = work()
        took = time.perf_counter() - begin
        late = took > SLOW * min(self.seconds.values())
        if self.trials:  # where all threads are clearly slower, there is no need to try them once more
            self.seconds[count], self.trials = min(took, self.seconds[count]), [] if late and count > 1 else self.trials[1:]
        else:
            self.slow = self.slow + 1 if late else 0
            if self.slow == 3:
                self.look()
        return result


# %% tags=["define"]
def choose_precision(device: torch.device) -> torch.dtype:
    """The number format of V's convolutions: bfloat16 on a GPU of compute capability 8 or newer, float16 on an older one (Colab's T4 only imitates bfloat16), float32 on a CPU."""
    return torch.float32 if device.type != "cuda" else torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16


LOG_EVERY = 50  # steps between two entries of a training log
SAVE_EVERY = 500  # steps between two saves
FIRST_SCALE = 2.0**4  # of a float16 loss: V's gradients fit below 2⁴ to 2⁸, and the scaler's own 2¹⁶ would cost the first dozen steps


def learning_rate_at(step: int, steps: int, peak: float) -> float:
    """A rise over the first 100 steps, then half a cosine down to 2 % of the peak."""
    return peak * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


BatchLoss = Callable[[torch.Generator, int], tuple[Tensor, dict[str, Tensor]]]


def fit(model: nn.Module, batch_loss: BatchLoss, settings: TrainSettings, seed: int, progress: Progress, label: str, max_gradient: float = math.inf) -> dict:
    """Train a model in place with Adam for `settings.steps` steps; go on from the last save if there is one. Gradients longer than `max_gradient` are shortened.

    `batch_loss(generator, step)` draws a batch and returns its loss and numbers to log. The generator lives on the CPU, so that an interrupted run
    can continue with the very same numbers. Returns `weights`, and `log`: a list per number, one entry every `LOG_EVERY` steps."""
    generator, pace, log, first = torch.Generator().manual_seed(seed), Pace(DEVICE), {"step": []}, 0
    optimizer = torch.optim.Adam(model.parameters(), settings.learning_rate)
    scaler = torch.amp.GradScaler(init_scale=FIRST_SCALE, enabled=choose_precision(DEVICE) == torch.float16)
    parts = {"model": model, "optimizer": optimizer, "scaler": scaler}
    if (saved := progress.load()) is not None:
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        generator.set_state(saved["generator"])
        first, log = saved["step"], saved["log"]
        print(f"{label}: going on from step {first:,}")

    def train(step: int) -> dict[str, Tensor]:
        """One step of gradient descent."""
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, settings.steps, settings.learning_rate)
        loss, numbers = batch_loss(generator, step)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), max_gradient)
        scaler.step(optimizer)
        scaler.update()
        return numbers

    model.train()
    for step in tqdm(range(first, settings.steps), desc=label, initial=first, total=settings.steps, unit="step"):
        numbers = pace.step(functools.partial(train, step))
        if step % LOG_EVERY == 0 or step == settings.steps - 1:
            for name, value in {"step": torch.tensor(step), **numbers}.items():
                log.setdefault(name, []).append(value.item())
        if (step + 1) % SAVE_EVERY == 0 and step + 1 < settings.steps:
            state = {name: part.state_dict() for name, part in parts.items()}
            progress.save({**state, "generator": generator.get_state(), "step": step + 1, "log": log})
            pace.look()
    model.eval()
    return {"weights": {name: value.cpu() for name, value in model.state_dict().items()}, "log": log}


def frozen(model: nn.Module, result: dict | None = None) -> nn.Module:
    """A model on the device, without gradients, with the weights of a finished stage if there is one."""
    if result is not None:
        model.load_state_dict(result["weights"])
    return model.to(DEVICE).eval().requires_grad_(False)


# %% [markdown]
# ### A law for the code: shifted picture, shifted z
#
# The ELBO does not care *how* $z$ writes down what it says. Left to itself, V may write the cart's position as a curve, with the angle mixed in, and C is linear: it can't undo a curve. But we know something that V does not: a picture shifted by $k$ pixels shows the same scene at another place. So its code should move by $k$ times one fixed direction $u$, wherever the cart is and however the pole leans:
#
# $$\mu(x \text{ shifted by } k) = \mu(x) + k\,u$$
#
# We make it a second loss. Each observation comes twice in a batch, under two shifts $k_1$ and $k_2$. Which share of the change of the code is *not* the law, with the best $u$ for the batch (least squares)?
#
# $$s = \frac{\sum \lVert\, \mu_1 - \mu_2 - (k_1 - k_2)\,u \,\rVert^2}{\sum \lVert\, \mu_1 - \mu_2 \,\rVert^2}, \qquad \text{loss} = -\text{ELBO} + \lambda \log s$$
#
# with $\lambda$ = `v.law`. Why a share, and not the squared distance itself? Because V could make a distance small by making $z$ small, and a share only by obeying. A straighter code is not always one that M predicts more easily, so 20 is a small weight. (That codes should follow the picture's motion is the idea of Hinton, Krizhevsky and Wang, 2011; this loss is ours.)
#
# **Predict** the shape of V's KL curve: its weight is 0 at the start, and grows.


# %% tags=["define"]
def shift_law_broken(mu: Tensor, pixels: Tensor) -> Tensor:
    """Which share of the change of a code is not one fixed direction times the shift of the picture: 0 is a perfect law, 1 none.

    `mu` (2B, Z): codes of B observations, and once more of the same ones under other shifts; `pixels` (2B,): by how much each was shifted."""
    change = torch.sub(*mu.chunk(2))  # (B, Z)
    moved = torch.sub(*pixels.float().chunk(2))[:, None]  # (B, 1)
    u = (moved * change).sum(0) / moved.square().sum().clamp(min=1)  # (Z,) least squares
    return (change - moved * u).square().sum() / change.square().sum().clamp(min=1e-6)


# %% tags=["define"]
def random_views(count: int, max_shift: int, generator: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
    """A random shift (pixels) and mirror flag for each of `count` observations or episodes, both (count,)."""
    shift = torch.randint(-max_shift, max_shift + 1, (count,), generator=generator)
    flip = torch.randint(0, 2, (count,), generator=generator).bool()
    return shift.to(device), flip.to(device)


def train_v(progress: Progress, memory: Memory, *, v: VSettings, seed: int, mean_reduced: bool = False) -> dict:
    """Train V on single observations. With a law, each comes twice in a batch, under two shifts. `mean_reduced`: the classic mistake, for the exhibit."""
    torch.manual_seed(seed)
    views = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(memory), (4096,), generator=views).to(memory.device)
    mean_picture = memory.stack(rows, *random_views(len(rows), v.max_shift, views, memory.device)).mean((0, 1))  # (64, 64)
    model, precision = V(v, mean_picture).to(memory.device), choose_precision(memory.device)
    times = 2 if v.law > 0 else 1
    count = max(1, v.batch // times)

    def batch_loss(generator: torch.Generator, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one random batch, and what to log."""
        rows = torch.randint(len(memory), (count,), generator=generator).to(memory.device).repeat(times)  # (B,)
        shift, flip = random_views(len(rows), v.max_shift, generator, memory.device)  # (B,) each
        flip = flip[:count].repeat(times)
        x = memory.stack(rows, shift, flip, BAND)  # (B, 4, 32, 64)
        noise = torch.randn(len(rows), v.latents, generator=generator).to(memory.device)  # (B, Z)
        with torch.autocast(memory.device.type, precision, enabled=precision != torch.float32):
            terms, mu = elbo(model, x, noise, min(1.0, step / v.ramp_steps))  # the weight of the KL climbs from 0 to 1
        loss = terms["error"] + terms["kl"] if mean_reduced else terms["loss"]
        if v.law > 0:
            terms["broken"] = shift_law_broken(mu, torch.where(flip, -shift, shift))  # a mirrored picture moves the other way
            loss = loss + v.law * torch.log(terms["broken"] + 1e-3)  # 0.001 keeps the logarithm finite
        return loss, terms

    return fit(model, batch_loss, v, seed, progress, "V")


def encode_rows(v: V, memory: Memory, rows: Tensor, shift: Tensor | None = None, mirror: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """μ and log σ² of a frozen V for some rows of the memory, each (B, Z), computed 1,024 at a time."""
    parts = []
    for chunk in torch.arange(len(rows), device=memory.device).split(1024):
        views = [None if values is None else values[chunk] for values in (shift, mirror)]
        parts.append(v.encode(memory.stack(rows[chunk], *views, BAND)))
    return tuple(torch.cat(values) for values in zip(*parts))


# %% tags=["run"]
v_stage = keep(train_v, memory, after=(collect,), name="v", v=settings.v, seed=settings.seed)
v = frozen(V(settings.v), v_stage.result)

# %% alt="V's training: the drawing error falls; the KL climbs at first and then comes down." tags=["run"]
v_log = v_stage.result["log"]
drawing = {"lines": {"_": (v_log["step"], v_log["error"])}, "yscale": "log", "ylabel": "MSE (normalised pixels)", "title": "V draws better and better"}
saying = {"lines": {"_": (v_log["step"], v_log["kl"], "--")}, "ylim": (0, None), "ylabel": "KL (nats)", "title": "… and with fewer words"}
plot(drawing | {"xlabel": "step"}, saying | {"xlabel": "step"})
v_greys = math.sqrt(v_log["error"][-1]) / PIXEL_SCALE * 255
print(f"last batch: MSE {v_log['error'][-1]:.4f} of normalised pixels, that is {v_greys:.1f} grey levels rms; KL {v_log['kl'][-1]:.0f} nats")

# %% [markdown]
# Left, the drawing error falls steeply, and then slowly. Right, the KL shoots up while its weight is small and words are free, and comes down as each nat has to be paid for. About 220 nats are left. Four numbers would need far fewer; V also says where exactly each grey pixel of an edge lies.

# %% alt="Left: what each latent dimension says, in nats. Right: eight real frames above V's drawings of them." tags=["run"]
sampled_rows = torch.randint(len(memory), (4096,), generator=torch.Generator().manual_seed(settings.seed)).to(DEVICE)
sampled_mu, sampled_log_var = encode_rows(v, memory, sampled_rows)  # (4096, Z) each
spread, nats_of = sampled_mu.var(0), kl_to_normal(sampled_mu, sampled_log_var).mean(0)  # (Z,) each
x_seen, x_drawn = memory.stack(sampled_rows[:8]), v.decode(sampled_mu[:8])  # (8, 4, 64, 64)
show_pictures({"seen x": x_seen[:, -1], "drawn from z": x_drawn[:, -1]}, "The newest frame of eight observations, and V's drawing of it")
plot(
    {"bars": nats_of.sort(descending=True).values.cpu(), "xlabel": "latent dimension, sorted", "ylabel": "nats"},
    title="What each dimension says",
    size=(8, 2.6),
)
print(f"root-mean-square error {255 * (x_drawn - x_seen).square().mean().sqrt():.1f} of 255 grey levels, over all 64 × 64 pixels")
print(f"{int((spread > 0.01).sum())} of {len(spread)} dimensions are active; KL {nats_of.sum():.0f} nats in all, {nats_of.max():.1f} in the busiest")

# %% [markdown]
# V draws these eight with an error of 3.0 of 255 grey levels. A dimension is *active* when its mean varies from picture to picture (variance over 0.01); an unused one would stay at the prior and cost nothing. All 64 are in use, although the state has four numbers: V also describes what does not matter for control.
#
# A **traversal** turns one knob at a time: take the mean code, move one dimension of $z$, draw the newest of the four frames. These are the four dimensions with the most nats.

# %% alt="Rows of pictures, each of one latent dimension turned from low to high: cart and pole move in some." tags=["run"]
middle = sampled_mu.mean(0, keepdim=True)  # (1, Z)
turns, busiest = torch.linspace(-2, 2, 9, device=DEVICE), nats_of.argsort(descending=True)[:4].tolist()
one_knob = torch.diag(spread.sqrt())  # (Z, Z): one deviation of one dimension
turned = {f"z[{j}]": v.decode(middle + turns[:, None] * one_knob[j])[:, -1] - v.decode(middle)[:, -1] for j in busiest}  # (9, 64, 64) each
changes = {name: 0.5 + 6 * change for name, change in turned.items()}  # grey: no change
show_pictures(changes, "What one dimension of z changes, from −2 to +2 deviations (enlarged six times)", [f"{turn:+.1f}" for turn in turns])

# %% cellView="form" tags=["define"]
# @title An explorer of z
import ipywidgets as widgets


def show_code(v: V, middle: Tensor, one_knob: Tensor, **turns: float) -> None:
    """Draw the observation that belongs to a code: `middle` (1, Z), with turns such as z7=1.5, in deviations."""
    z = middle + sum(turn * one_knob[int(name[1:])] for name, turn in turns.items())  # (1, Z)
    show_pictures({"x": v.decode(z)[0]}, "V's drawing", ["t − 3", "t − 2", "t − 1", "t"])


# %% tags=["run", "widget"]
explorer = widgets.interactive(lambda **turns: show_code(v, middle, one_knob, **turns), **{f"z{j}": widgets.FloatSlider(0, min=-3, max=3) for j in busiest})
if not switch("WM_NO_WIDGETS"):  # a saved widget is nothing without its kernel
    display(explorer)

# %% [markdown]
# Drawn is the difference to the middle picture: grey is no change. The fourth row moves the pole most clearly; the first three change little, though V says more in them. No dimension is "the angle": the state is spread over many. With a kernel at hand, turn the knobs yourself.
#
# ### Does z hold the physical state?
#
# Good pictures prove little: a pole of 20 grey pixels can be lost at almost no cost in MSE. The telling question is whether $x, \dot x, \theta, \dot\theta$ can be read from $z$ by a *linear* map. We fit one by least squares on the first 80 % of the episodes and test it on the others. Nothing is trained through it.
#
# **Predict:** which of the four will be hard to read?

# %% tags=["define"]
STATE_UNITS = {"x": "m", "x_dot": "m/s", "theta": "rad", "theta_dot": "rad/s"}
PIXEL_METRES = 4.8 / FRAME_SIZE  # the picture is 4.8 m wide


def true_states(memory: Memory, rows: Tensor, shift: Tensor, mirror: Tensor) -> Tensor:
    """The physical states (B, 4) of some rows, as they look after a shift (B,) in pixels, positive to the left, and a mirror (B,)."""
    states = memory.states[rows] - F.pad((shift * PIXEL_METRES)[:, None], (0, 3))  # (B, 4)
    return torch.where(mirror[:, None], -states, states)


class Probe:
    """A linear reading of the physical state from features: a measuring instrument. Nothing is trained through it."""

    def __init__(self, features: Tensor, states: Tensor, ridge: float = 1e-5) -> None:
        """Least squares from features (S, F) to states (S, 4), with a small ridge for features that say the same thing."""
        features, states = features.double(), states.double()
        self.mean, self.scale, self.offset = features.mean(0), features.std(0) + 1e-3, states.mean(0)
        a = (features - self.mean) / self.scale  # (S, F)
        gram = a.T @ a + ridge * max(1, len(a)) * torch.eye(a.shape[1], dtype=a.dtype, device=a.device)  # (F, F)
        self.weight = torch.linalg.solve(gram, a.T @ (states - self.offset))  # (F, 4)

    def __call__(self, features: Tensor) -> Tensor:
        """States (..., 4) read from features (..., F)."""
        return (((features.double() - self.mean) / self.scale) @ self.weight + self.offset).float()

    def score(self, features: Tensor, states: Tensor) -> dict[str, dict[str, float]]:
        """R² and root-mean-square error (in the state's own units) on other data, by name of the state."""
        missed, spread = (self(features) - states).square().mean(0), states.var(0, unbiased=False)  # (4,) each
        return {name: dict(zip(STATE_UNITS, values.tolist())) for name, values in (("r2", 1 - missed / spread), ("rms", missed.sqrt()))}


def number(value: float, digits: int, unit: str = "") -> str:
    """A measured number as text; – where it could not be measured, because no episode was long enough."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}{unit}"


def print_scores(columns: dict[str, tuple[dict, str]]) -> None:
    """A table with a line per state: column -> (what `Probe.score` returned, "r2" or "rms")."""
    print(f"{'':10s}", *(f"{column:>24s}" for column in columns))
    for name, unit in STATE_UNITS.items():
        texts = (
            f"R² {number(score[kind][name], 3)}" if kind == "r2" else f"rms {number(score[kind][name], 3, f' {unit}')}" for score, kind in columns.values()
        )
        print(f"{name:10s}", *(f"{text:>24s}" for text in texts))


# %% tags=["run"]
z_recorded, _ = encode_rows(v, memory, memory.rows)  # (N, Z)
held_out = memory.episode >= int(0.8 * len(memory.episodes))
z_probe = Probe(z_recorded[~held_out], memory.states[~held_out])
z_score = z_probe.score(z_recorded[held_out], memory.states[held_out])
print_scores({"share explained": (z_score, "r2"), "error": (z_score, "rms")})

# %% [markdown]
# The position is read to 0.011 m, about a seventh of a pixel, and the angle to 0.018 rad, about 1°. The velocities are lost, in two ways. What the last push has done is not yet visible. And a velocity is a difference of two positions: even of the first and the last frame, 0.06 s apart, 0.01 m too much in one of them are 0.17 m/s too much. Somebody who has seen more frames and *remembers the pushes* could do better. That somebody is M.
#
# ### What goes wrong with a mean-reduced loss
#
# The most frequent mistake in VAE code is `mse_loss(..., reduction="mean") + kl`. The mean divides the drawing error by the number of pixels but leaves the KL as it is, so one nat suddenly costs as much as thousands of wrong pixels. **Predict** what such a VAE draws, after a hundred steps.

# %% alt="Drawings of a V trained with means instead of sums: all of them show the same blurred average picture." tags=["run"]
short_v = settings.v.but(steps=min(100, settings.v.steps), law=0.0)
broken_stage = keep(train_v, memory, after=(collect,), name="v-mean-reduced", v=short_v, seed=settings.seed, mean_reduced=True)
broken = frozen(V(settings.v), broken_stage.result)
drawings = {"seen x": x_seen, "our V": x_drawn, "mean-reduced": broken.decode(broken.encode(x_seen)[0])}  # (8, 4, 64, 64) each
show_pictures({name: pictures[:, -1] for name, pictures in drawings.items()}, "Summed and mean-reduced loss")
collapsed = kl_to_normal(*broken.encode(memory.stack(sampled_rows[:512]))).sum(1).mean()
print(f"KL of the mean-reduced VAE: {collapsed:.3f} nats; ours: {nats_of.sum():.0f} nats")


# %% [markdown]
# A KL close to zero (0.09 nats here) means that $z$ says next to nothing about the picture, and the decoder can only draw the average of all of them. That is *posterior collapse*, here caused by the wrong scale of the two terms.
#
# <details><summary><b>Exercise 3.</b> By which factor must the KL be weighted so that the mean-reduced loss becomes the ELBO with σ² = 1? (Solution)</summary>
#
# A mean over D pixels is the sum divided by D; the ELBO has ½ of the sum. So weight the KL by 2/D. With our D = 8,192 that is 0.00024.
# </details>

# %% [markdown]
# ## 5 · M: what happens next?
#
# M is the private simulator. It reads $z_t$ and the action $a_t$, keeps a memory $h$, and predicts the next latent. Its core is an LSTM (Hochreiter & Schmidhuber 1997), which also keeps a cell state $c$:
#
# $$\begin{aligned} i, f, g, o &= W\,[\,z_t,\; 5(z_t - z_{t-1}),\; a_t,\; h_t\,] + b \\ c_{t+1} &= \mathrm{sigmoid}(f)\, c_t + \mathrm{sigmoid}(i) \tanh(g) \qquad h_{t+1} = \mathrm{sigmoid}(o) \tanh(c_{t+1}) \\ \mu_{t+1} &= z_t + \Delta(h_{t+1}) \qquad \hat r = w_r^\top h_{t+1} \qquad p_\text{done} = \mathrm{sigmoid}(w_d^\top h_{t+1}) \end{aligned}$$
#
# $\Delta$ is the predicted change of $z$ (none at first: its weights start at zero), $\hat r$ the predicted reward, $p_\text{done}$ the probability that the episode ends here. Why does M read the change of $z$ as well? Because a velocity is a small difference of two large numbers, and an LSTM that has to form it itself learns it slowly and not exactly; the 5 brings it near the size of $z$. The step is written out, so that all four gates are one matrix product: thousands of dreams can then share it.
#
# M also says how much it doubts its prediction: $\log \sigma^2(h_{t+1}, n)$ for each dimension, where $n$ counts the steps since M last saw a real $z$. Ha & Schmidhuber use a mixture of normals; CartPole is deterministic, so one normal is enough.
#
# V is frozen from here on. It encodes the whole memory once: as recorded, and in several copies, each episode shifted and mirrored by chance. M trains on these codes and never sees a picture. (Ha & Schmidhuber let M read samples $z_t \sim q(z \mid x_t)$; ours reads the means.)


# %% tags=["define"]
class Codes(NamedTuple):
    """The memory as V sees it, in K copies; copy 0 is as recorded, the others are shifted and mirrored by episode."""

    mu: Tensor  # (K, N, Z)
    log_var: Tensor  # (K, N, Z)
    actions: Tensor  # (K, N) swapped where the episode is mirrored
    shift: Tensor  # (K, E) pixels
    mirror: Tensor  # (K, E) bool


def encode_memory(progress: Progress | None, memory: Memory, v: V, *, copies: int = 1, max_shift: int = 0, seed: int = 0) -> dict:
    """Encode the whole memory `copies` times. A shift stays the same throughout an episode, or it would look like motion."""
    generator, parts = torch.Generator().manual_seed(seed), []
    for number in tqdm(range(copies), desc="encode", unit="copy", disable=copies == 1):
        shift, flip = (view * (number > 0) for view in random_views(len(memory.episodes), max_shift, generator, memory.device))  # (E,) each
        views = shift[memory.episode], flip[memory.episode]  # (N,) each
        actions = torch.where(views[1], 1 - memory.actions, memory.actions)  # (N,)
        parts.append((*encode_rows(v, memory, memory.rows, *views), actions, shift, flip))
    return Codes(*(torch.stack(values) for values in zip(*parts)))._asdict()


# %% tags=["run"]
code_settings = {"copies": settings.m.copies, "max_shift": settings.v.max_shift, "seed": settings.seed}
code_stage = keep(encode_memory, memory, v, after=(collect, v_stage), name="codes", **code_settings)
codes = Codes(**{name: values.to(DEVICE) for name, values in code_stage.result.items()})
print("{} copies of {:,} codes with {} dimensions".format(*codes.mu.shape))


# %% tags=["define"]
class State(NamedTuple):
    """Where B lives stand, real or dreamed."""

    z: Tensor  # (B, Z) what V sees now, or what M imagines to see
    before: Tensor  # (B, Z) the same one step earlier
    h: Tensor  # (B, H)
    c: Tensor  # (B, H) the LSTM's cell
    blind: Tensor  # (B, 1) steps since M last saw a real z

    def pick(self, rows: Tensor | slice) -> "State":
        """Some of the lives, by number or by a mask."""
        return State(*(part[rows] for part in self))


class Says(NamedTuple):
    """What M says about where a life stands after a step; the leading shape is that of h."""

    mu: Tensor  # (..., Z) mean of the new z
    log_var: Tensor  # (..., Z) its log-variance
    reward: Tensor  # (...) r̂
    done: Tensor  # (...) logit of p_done


SPREAD = 0.135  # σ in the loss of M's mean: about the size of a latent's change in a step


class M(nn.Module):
    """The recurrent world model: h' = LSTM(h, z, Δz, a), and heads on h' (Ha & Schmidhuber 2018, section 2.2)."""

    CHANGE = 5.0  # brings the change of z near the size of z
    DOUBT = 10.0  # Adam moves a weight by its learning rate at most: with this factor the doubt reaches its size in time

    def __init__(self, latents: int, hidden: int, pushes: int = 1) -> None:
        """`latents`, `hidden`: sizes of z and h. `pushes`: how many make a step."""
        super().__init__()
        self.hidden, self.pushes = hidden, pushes
        self.gates = nn.Linear(2 * latents + pushes + hidden, 4 * hidden)  # all four gates in one matrix product
        self.change = nn.Linear(hidden, latents)  # of z, in one step
        self.log_var = nn.Linear(hidden + 2, latents)  # how wrong that may be, after so many steps without looking
        self.reward, self.done = nn.Linear(hidden, 1), nn.Linear(hidden, 1)
        for part in self.gates.parameters():
            nn.init.uniform_(part, -(hidden**-0.5), hidden**-0.5)
        for part in (*self.change.parameters(), *self.log_var.parameters()):
            nn.init.zeros_(part)
        nn.init.constant_(self.log_var.bias, 2 * math.log(SPREAD) / self.DOUBT)  # the doubt begins where the loss of the mean fixes it

    def begin(self, z: Tensor) -> State:
        """The state at z (B, Z) before anything was read."""
        nothing = z.new_zeros(len(z), self.hidden)  # (B, H)
        return State(z, z, nothing, nothing, nothing[:, :1])

    def step(self, state: State, a: Tensor) -> State:
        """One step under the pushes a (B,) in {0, 1}, or (B, P) if P make a step: the state after it, with M's mean as its z."""
        z, before, h, c, blind = state
        push = 2.0 * a.to(z.dtype).view(len(z), self.pushes) - 1  # (B, P): −1 left, +1 right
        gates = self.gates(torch.cat([z, self.CHANGE * (z - before), push, h], 1))  # (B, 4H)
        i, f, o = gates[:, self.hidden :].sigmoid().chunk(3, 1)  # (B, H) each
        c = f * c + i * gates[:, : self.hidden].tanh()
        h = o * c.tanh()
        return State(z + self.change(h), z, h, c, blind + 1)

    def says(self, state: State) -> Says:
        """The heads, on states after a step: (B, …) or whole sequences (B, T, …)."""
        # The doubt is a witness: it reads h, but its loss does not shape h, or M would rather doubt a latent than learn it.
        log_var = (self.DOUBT * self.log_var(torch.cat([state.h.detach(), state.blind.log1p(), state.blind / 10], -1))).clamp(-16, 3)  # (..., Z)
        return Says(state.z, log_var, self.reward(state.h)[..., 0], self.done(state.h)[..., 0])


# %% [markdown]
# ### One loop, awake or dreaming
#
# M lives along a sequence of steps. As long as there are real codes to be shown, it reads them. When there are none left, it goes on with its own predictions: that is a dream. Who pushes (recorded pushes, a coin, a controller, a whole generation of controllers) is an argument. Everything below, training included, goes through this one loop.


# %% tags=["define"]
class Step(NamedTuple):
    """One step of B lives."""

    a: Tensor  # (B,) the push
    state: State  # after the push


Choose = Callable[[int, State], Tensor]  # (number of the step, state) -> pushes (B,)


def given(a: Tensor) -> Choose:
    """Pushes that are known beforehand: a (B, T)."""
    return lambda k, state: a[:, k]


def dream(m: M, state: State, choose: Choose, steps: int, shown: Tensor | None = None, tau: float = 0.0, noise: Tensor | None = None) -> Iterator[Step]:
    """M along B lives: as long as there are codes to be shown it reads them (teacher forcing), then it lives on its own predictions.

    Args:
        state: where the lives stand. choose: who acts. steps: how far.
        shown: (B, R, Z) what V really saw in the first R steps.
        tau, noise: the temperature τ, and (B, steps, Z) standard normal numbers, already masked."""
    for k in range(steps):
        if shown is not None and k < shown.shape[1]:
            state = state._replace(z=shown[:, k], blind=torch.zeros_like(state.blind))
        a = choose(k, state)
        state = m.step(state, a)
        if tau > 0:
            state = state._replace(z=state.z + tau * (0.5 * m.says(state).log_var).exp() * noise[:, k])
        yield Step(a, state)


def stacked(parts: list) -> Any:
    """T tensors (B, …), or T tuples of such, as one tensor (B, T, …), or one tuple."""
    first = parts[0]
    return torch.stack(parts, 1) if isinstance(first, Tensor) else type(first)(*map(stacked, zip(*parts)))


# %% [markdown]
# ### Teacher forcing, and what the loss must not allow
#
# During training M first reads *real* codes at each step, not its own predictions: **teacher forcing**. It is stable and fast, but M never practises living with its own mistakes. We shall measure what that costs.
#
# **The loss** looks like a matter of taste, and is not. The usual choice is the Gaussian's −log p with M's own $\sigma$. But a model that may call a latent uncertain has two ways to lower that loss: learn the latent, or doubt it, and then its error counts little. So the mean learns by *squared error, with one fixed σ for all latents*, and the doubt learns beside it, about that mean, without shaping $h$. And it learns from every tenth episode, from which the mean does not: whoever asks how wrong M is where M has been trained hears too little. (Seitzer et al., 2022, show what the usual loss does in long trainings: what is doubted early is learned late, or never.)
#
# **Windows start anywhere**, with $h = 0$. A random episode starts near the same state, so an M that always sees it from the start can simply add up the pushes and hardly look at $z$. A good controller's episode is long, and adding up fails there. An M that is thrown into the middle has to look. Ends are rare, so their loss counts ten times.
#
# **Predict:** CartPole pays 1 at every step. How long will the reward loss take to get small? And how well can the fall be foreseen one step ahead?

# %% tags=["define"]
DONE_WEIGHT = 10.0  # ends are rare


def m_losses(m: M, z: Tensor, a: Tensor, reward: Tensor, done: Tensor, real: Tensor, read: int, unseen: Tensor | None = None) -> dict[str, Tensor]:
    """M's losses on a batch of sequences, each a mean over the real (not padded) steps: `total`, and what to log.

    Args:
        z: (B, T + 1, Z) codes, of which M reads the first `read`; a: (B, T); reward: (B, T).
        done: (B, T) 1 where the step ended the episode; real: (B, T) 0 beyond the episode's end.
        unseen: (B, 1) 1 for sequences from which the doubt learns, and nothing else; None: all learn from all."""
    says = m.says(stacked([step.state for step in dream(m, m.begin(z[:, 0]), given(a), a.shape[1], z[:, :read])]))  # (B, T, …)
    squared = (z[:, 1:] - says.mu).square()  # (B, T, Z)
    parts = {
        "latent": 0.5 * squared.sum(-1) / SPREAD**2,  # (B, T) nats: the mean
        "doubt": 0.5 * (squared.detach() * (-says.log_var).exp() + says.log_var).sum(-1),  # (B, T) nats: the variance, about that mean
        "reward": (says.reward - reward).square(),
        "done": F.binary_cross_entropy_with_logits(says.done, done, reduction="none"),
        "error": squared.mean(-1),
    }
    weight = dict.fromkeys(parts, real) if unseen is None else dict.fromkeys(parts, real * (1 - unseen)) | {"doubt": real * unseen}  # (B, T) each
    means = {name: (value * weight[name]).sum() / weight[name].sum().clamp(min=1) for name, value in parts.items()}
    return {"total": means["latent"] + means["doubt"] + means["reward"] + DONE_WEIGHT * means["done"], **means}


# %% tags=["define"]
MAX_GRADIENT = 200.0  # longer gradients of M are shortened: they come from a few bad windows


def train_m(progress: Progress, memory: Memory, codes: Codes, begin: dict | None = None, also: Callable | None = None, *,
            m: MSettings, practice: PracticeSettings | None = None, seed: int) -> dict:  # fmt: skip
    """Train M, from the weights `begin` if given, on random windows of the encoded episodes.

    Without practice: teacher forcing, on windows of m.window steps. With practice M reads between half of m.context and all of it, and lives on its own
    predictions for the rest of m.context + practice.alone steps. `also`: one more loss of (M, z, a, real, read), as in `m_losses`."""
    torch.manual_seed(seed)
    model, how = M(codes.mu.shape[-1], m.hidden, codes.actions[0, 0].numel()).to(memory.device), practice or m
    if begin is not None:
        model.load_state_dict(begin)
    starts = memory.rows[memory.rows < memory.last]  # rows that have a next step
    length = m.context + practice.alone if practice else m.window  # T
    offsets = torch.arange(length + 1, device=memory.device)

    def batch_loss(generator: torch.Generator, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one random batch, and what to log."""
        read, start = length, memory.draw(starts, how.batch, generator)[:, None]  # (B, 1)
        copy = torch.randint(len(codes.mu), (how.batch, 1), generator=generator).to(memory.device)  # (B, 1)
        if practice:
            read = int(torch.randint(m.context // 2, m.context + 1, (1,), generator=generator))
            # Most episodes end soon. Windows move back until they fit, or there would be little to practise on.
            start = torch.maximum(memory.first[start], torch.minimum(start, memory.last[start] - length))
        rows = torch.minimum(start + offsets, memory.last[start])  # (B, T + 1)
        real = (start + offsets[:-1] < memory.last[start]).float()  # (B, T)
        a, reward, done = codes.actions[copy, rows[:, :-1]], memory.rewards[rows[:, :-1]], memory.done[rows[:, 1:]].float()  # (B, T)
        unseen = (memory.episode[start] % 10 == 9).float()  # (B, 1)
        losses = m_losses(model, codes.mu[copy, rows], a, reward, done, real, read, unseen)
        return losses["total"] + (also(model, codes.mu[copy, rows], a, real * (1 - unseen), read) if also else 0), losses

    return fit(model, batch_loss, how, seed, progress, "M", MAX_GRADIENT)


# %% alt="M's training: the error of the next z, the termination loss and the reward loss fall." tags=["run"]
m_stage = keep(train_m, memory, codes, after=(code_stage,), name="m", m=settings.m, seed=settings.seed)
m_forced = frozen(M(settings.v.latents, settings.m.hidden), m_stage.result)
m_log = m_stage.result["log"]
next_z = {"lines": {"_": (m_log["step"], m_log["error"])}, "ylabel": "squared error of one latent", "title": "M predicts the next z"}
its_heads = {"termination (nats)": (m_log["step"], m_log["done"], "--"), "reward (squared error)": (m_log["step"], np.maximum(m_log["reward"], 1e-9), "-.")}
m_axes = {"xlabel": "step", "yscale": "log"}
plot(next_z | m_axes, {"lines": its_heads, "ylabel": "loss", "title": "… the end, and the reward"} | m_axes)
print(f"last batch: squared error {m_log['error'][-1]:.4f}, termination {m_log['done'][-1]:.3f} nats, reward {m_log['reward'][-1]:.0e}")

# %% [markdown]
# The reward is soon learned: each step pays 1. The fall is harder to foresee; its loss ends near 0.04 nats.
#
# ### Open loop: how long can M dream?
#
# Now the hard test. M reads a few real steps and then goes on alone, with the real actions but its own latents. It counts on a *good* controller's episodes, because that is where C will take us. We have no C yet, so the rule from exercise 1 plays a few, for measuring and for nothing else.
#
# How does M get its $h$ in the middle of an episode? It reads the last sixteen real steps (`m.context`; fewer where the episode has just begun), beginning with $h = 0$, and the same recipe serves everywhere: at the start of a dream, in the measurements, and later in the real world. So $h$ never gets much older than what M was trained on.
#
# What always belongs together is one object, a `World`: V, M, the episodes they look at, and their codes. It is made once and passed on whole.


# %% tags=["define"]
START_POOL = 8192  # real moments that are kept ready as beginnings of dreams


class World(NamedTuple):
    """One state of knowledge: what was recorded, how V codes it, how M continues it."""

    v: V
    m: M
    memory: Memory
    codes: Codes  # of that memory
    context: int  # real steps that M reads before it speaks

    def looking_at(self, episodes: list[Episode]) -> "World":
        """The same V and M, with other episodes before them."""
        memory = Memory(episodes, 0, DEVICE)
        return self._replace(memory=memory, codes=Codes(**encode_memory(None, memory, self.v)))

    def states(self, rows: Tensor, copies: Tensor | int = 0) -> State:
        """The states at some rows (S,) of some copies (S,), with h from the last `context` real steps (fewer at an episode's beginning)."""
        copies, parts = torch.as_tensor(copies, device=rows.device).expand(len(rows)), []
        for row, copy in zip(rows.split(8192), copies.split(8192)):
            first, back = self.memory.first[row][:, None], row[:, None] - torch.arange(self.context, -1, -1, device=row.device)  # (S, 1), (S, C + 1)
            known, back = back >= first, torch.maximum(back, first)  # (S, C + 1) each
            parts.append(remembered(self.m, self.codes.mu[copy[:, None], back], self.codes.actions[copy[:, None], back], known))
        return State(*(torch.cat(values) for values in zip(*parts)))

    def moments(self, count: int, generator: torch.Generator, ahead: int = 1, copies: int = 0, episodes: range | None = None) -> tuple[Tensor, Tensor]:
        """At most `count` random rows (S,) with a few real steps before and `ahead` after them, and copies (S,), 0: of all. ValueError: no episode is long enough."""
        rows, first, last, episode = self.memory.rows, self.memory.first, self.memory.last, self.memory.episode  # (N,) each
        wanted = (episode >= episodes.start) & (episode < episodes.stop) if episodes else episode >= 0
        before = min(self.context // 2, int((last - first)[wanted].max()) - ahead)  # where all are short, fewer steps must do
        rows = rows[wanted & (rows - first >= before) & (rows + ahead <= last)]
        if not len(rows):
            raise ValueError(f"no recorded episode has {ahead} steps: record more of them (collect.episodes)")
        copies = copies or len(self.codes.mu)
        rows = self.memory.draw(rows, min(count, copies * len(rows)), generator)
        return rows, torch.randint(copies, (len(rows),), generator=generator).to(rows.device)


def remembered(m: M, z: Tensor, a: Tensor, known: Tensor) -> State:
    """M's state at the last of C + 1 codes: z (B, C + 1, Z), a and known (B, C + 1); what is not known was before the episode began."""
    state = m.begin(z[:, 0])
    for k in range(z.shape[1] - 1):
        state = m.step(state._replace(z=z[:, k], blind=torch.zeros_like(state.blind)), a[:, k])
        state = state._replace(h=state.h * known[:, k, None], c=state.c * known[:, k, None])  # as long as the episode has not begun, h and c stay 0
    return state._replace(z=z[:, -1], blind=torch.zeros_like(state.blind))


# %% cellView="form" tags=["define"]
# @title A good rule, for measurements only
def centred_policy(fresh: np.ndarray, frames: np.ndarray, states: np.ndarray, seeds: list) -> np.ndarray:
    """The solution of exercise 1: a rule on the true state that also keeps the cart in the middle."""
    return (states @ np.array([0.1, 0.2, 1.0, 0.4]) > 0).astype(np.int64)


# %% tags=["run"]
good_settings = {"episodes": settings.evaluate.good_episodes, "seed": settings.seed, "workers": settings.collect.workers}
good_stage, good_episodes = recorded(centred_policy, purpose="hand written", **good_settings)
forced_world = World(v, m_forced, memory, codes, settings.m.context)
good_world = forced_world.looking_at(good_episodes)
print(f"centred rule: mean return {np.mean([len(episode.actions) for episode in good_episodes]):.0f} over {len(good_episodes)} episodes")

# %% [markdown]
# We read the imagined state in two ways. *Seen*: V draws the imagined $z$ and looks at its own drawing, as a spectator would, and a linear probe reads angle and position. *From z*: the probe reads the imagined $z$ itself, as the next step of the dream does. (The probe is fitted on a shifted and mirrored copy of random play, so that it knows a wider track.) Two baselines run along: one that copies the last frame, and an M that was never trained.
#
# **Predict:** after one step, M should be off by a fraction of a degree. And after 30?

# %% tags=["define"]
HORIZONS = (1, 5, 15, 30)  # steps without looking, of which tables speak


def median(values: Tensor) -> Tensor:
    """The median over the first dimension, (S, ...) -> (...); nan where there is nothing to take it of."""
    return values.median(0).values if len(values) else values.new_full(values.shape[1:], math.nan)


def seen_again(v: V, z: Tensor) -> Tensor:
    """What V sees in its own drawings of some latents: z (S, T, Z) -> drawn and encoded again, (S, T, Z)."""
    parts = [v.encode(v.decode(part))[0] for part in z.flatten(0, 1).split(1024) if len(part)]
    return torch.cat(parts).view(z.shape) if parts else z  # (S, T, Z)


def windows(memory: Memory, length: int, count: int = 400) -> Tensor:
    """Row numbers (S, length) of random stretches that lie within one episode; S = count, or 0 if no episode is that long."""
    starts, generator = memory.rows[memory.rows + length <= memory.last + 1], torch.Generator().manual_seed(0)
    pick = torch.randint(max(1, len(starts)), (count if len(starts) else 0,), generator=generator).to(memory.device)
    return starts[pick][:, None] + torch.arange(length, device=memory.device)  # (S, length)


@torch.no_grad()
def open_loop(world: World, rows: Tensor) -> tuple[Tensor, State]:
    """M alone on windows of recorded episodes, `rows` (S, C + T): it reads `context` real steps and then lives on, under the real pushes.

    Returns the rows of the T steps alone, (S, T), and M's states there, (S, T, …)."""
    z, a = world.codes.mu[0, rows], world.codes.actions[0, rows]  # (S, C + T, Z), (S, C + T)
    lived = [step.state for step in dream(world.m, world.m.begin(z[:, 0]), given(a), rows.shape[1] - 1, z[:, : world.context])]
    return rows[:, world.context :], stacked(lived[world.context - 1 :])


def open_loop_errors(world: World, probe: Probe, seen: bool = True, horizon: int = 30) -> Tensor:
    """Median |error| of the read state after each of T steps alone, (T, 4); `seen`: from the picture that V draws, else from z itself."""
    rows, state = open_loop(world, windows(world.memory, world.context + horizon))
    mu = world.m.says(state).mu  # (S, T, Z)
    return median((probe(seen_again(world.v, mu) if seen else mu) - world.memory.states[rows]).abs())


def copy_errors(world: World, horizon: int = 30) -> Tensor:
    """The same for the copy-the-last-frame baseline (with a perfect reading of that frame), (T, 4)."""
    rows = windows(world.memory, world.context + horizon)[:, world.context :]
    return median((world.memory.states[rows[:, :1] - 1] - world.memory.states[rows]).abs())


def show_open_loop(table: dict[str, Tensor], title: str) -> None:
    """Median open-loop errors (T, 4) by name: θ in degrees at the left, x in millimetres at the right, against the horizon; and some of them in print."""
    panels = []
    for index, factor, label in ((2, 180 / math.pi, "θ (degrees)"), (0, 1000, "x (mm)")):
        lines = {name: (range(1, len(errors) + 1), factor * errors[:, index].cpu()) for name, errors in table.items()}
        panels.append({"lines": lines, "xlabel": "steps without looking (20 ms each)", "ylabel": f"median |error| of {label}", "ylim": (0, None)})
    plot(*panels, title=title)
    for name, errors in table.items():
        texts = (f"{k:2d}: {number(math.degrees(errors[k - 1, 2]), 2, '°'):>5s} {number(1000 * float(errors[k - 1, 0]), 0, ' mm'):>6s}" for k in HORIZONS)
        print(f"{name:37s}", "   ".join(texts))


# %% alt="Median error of angle and position over thirty steps without looking, before practice: M's errors grow, those of two idle baselines stay flat." tags=["run"]
shifted_states = true_states(memory, memory.rows, codes.shift[-1][memory.episode], codes.mirror[-1][memory.episode])  # (N, 4)
wide_probe = Probe(codes.mu[-1], shifted_states)
torch.manual_seed(settings.seed)
m_untrained = frozen(M(settings.v.latents, settings.m.hidden))
before_practice = {
    "teacher forcing only, seen": open_loop_errors(good_world, wide_probe),
    "teacher forcing only, from z": open_loop_errors(good_world, wide_probe, seen=False),
    "M, untrained": open_loop_errors(good_world._replace(m=m_untrained), wide_probe),
    "copy the last frame": copy_errors(good_world),
}
show_open_loop(before_practice, "Dreaming with the eyes closed, on a good controller's episodes")

# %% [markdown]
# M's angle is off by 0.35° after one step, and after thirty by 4.05° as seen, by 3.51° from z itself: its small errors grow, as they do on a real pole. Do not be fooled by the two baselines that stay flat. On a good controller's episodes next to nothing happens, so whoever predicts *no change* is right most of the time. Episodes in which the pole moves come below.
#
# ### Practice: living on its own predictions
#
# Teacher forcing always put M back on the road, so it has never met its own mistakes. And a pole is unforgiving: left alone, a small lean grows by a factor of 2.7 every quarter of a second.
#
# The cure is **practice**. In further training steps M reads only the first few codes of a window, between 8 and 16, and then lives on its own predictions, with the real actions. The loss is the same, and its gradient flows back through all the imagined steps. This also teaches M to *look* better: an angular velocity that is read a little wrong costs nothing after one step, and much after sixteen.

# %% alt="The same errors with and without practice, on good play and while the pole sways: practice is lower." tags=["run"]
practice_settings = {"m": settings.m, "practice": settings.practice, "seed": settings.seed}
practice_stage = keep(train_m, memory, codes, m_stage.result["weights"], after=(m_stage,), name="practice", **practice_settings)
world = forced_world._replace(m=frozen(M(settings.v.latents, settings.m.hidden), practice_stage.result))
good_world_practised = good_world._replace(m=world.m)
after_practice = {name: open_loop_errors(good_world_practised, wide_probe, seen) for name, seen in {"M, seen": True, "M, from z": False}.items()}
show_open_loop(after_practice | {name: before_practice[name] for name in list(before_practice)[:2]}, "The same test after practice, good play")
swaying = {"M, random play": open_loop_errors(world, wide_probe), "copy the last frame, random play": copy_errors(world)}
show_open_loop(swaying, "Dreaming with the eyes closed, while the pole sways")

# %% [markdown]
# Practice takes two fifths off the angle's error after thirty steps as seen, 2.37° instead of 4.05°, and more off the position's, 13 mm instead of 30 mm; from z itself it is 2.51° instead of 3.51°, and 19 mm instead of 33 mm. Both readings stay close together, so the imagined $z$ remains nearly what V would have written. Nothing is lost before. But do not give practice all the credit: it is also more training, with twice the batch.
#
# The second figure has long stretches of random play, in which the pole really moves. Here the baseline grows as well: after thirty steps a copy of the last frame is off by 5.87° and 209 mm, M by 2.37° and 21 mm. So M does know where the pole is going. (M has practised on these very episodes; part 9 has new ones.)
#
# ### What h adds
#
# The same linear probe as in part 4, now on $(z, h)$: fitted on random play, and then tried on the good rule's episodes, which are far longer and hardly ever off balance.


# %% tags=["define"]
def features(state: State) -> Tensor:
    """What C reads: (z, h), (..., Z + H)."""
    return torch.cat([state.z, state.h], -1)


def read_rows(world: World, copy: int = 0, episodes: slice = slice(None)) -> tuple[Tensor, Tensor]:
    """(z, h) at all rows of some episodes, in one copy, with their true states: (S, Z + H), (S, 4). Without each episode's first steps, when M has read too little."""
    memory, chosen = world.memory, torch.zeros(len(world.memory.episodes), dtype=torch.bool, device=world.memory.device)
    chosen[episodes] = True
    rows = memory.rows[chosen[memory.episode] & (memory.rows - memory.first >= world.context // 2)]  # (S,)
    views = (view[copy, memory.episode[rows]] for view in (world.codes.shift, world.codes.mirror))  # (S,) each
    return features(world.states(rows, copy)), true_states(memory, rows, *views)


# %% tags=["run"]
half_way = len(memory.episodes) // 2
zh_probe = Probe(*read_rows(world, 1 % len(codes.mu), slice(half_way, None)))
zh_score, zh_good = zh_probe.score(*read_rows(world, 0, slice(0, half_way))), zh_probe.score(*read_rows(good_world_practised))
print_scores({"z, random play": (z_score, "r2"), "(z, h), random play": (zh_score, "r2"), "(z, h), good play": (zh_good, "rms")})

# %% [markdown]
# With the memory $h$, the velocities become readable too: M has seen more frames than four, and it remembers the pushes. The last column says how well C will be informed when it is good.
#
# <details><summary><b>Exercise 4.</b> M says σ = 2 for a dimension whose true spread is 1. How many nats per step does it lose against σ = 1? (Solution)</summary>
#
# The expected −log p is log σ + 1/(2σ²) + const. With σ = 2 that is 0.693 + 0.125 = 0.818, with σ = 1 it is 0 + 0.5. So it loses 0.318 nats. With σ = ½ it would lose 0.807: too sure is punished harder than too modest.
# </details>

# %% [markdown]
# ## 6 · Dreaming
#
# Now M is left alone with pushes that it is given. First with those of a recorded episode, so that the dream can be set beside reality.

# %% alt="A film with the real frames above and M's dream under the same pushes below." tags=["run"]
film_long = memory.last - memory.first >= min(settings.m.context + 30, max(random_lengths))  # (N,)
film_end = int(memory.last[film_long][0])  # of the first random episode that is long enough
film_rows = torch.arange(max(int(memory.first[film_end]), film_end - 30), film_end + 1, device=DEVICE)  # (T + 1,)
with torch.no_grad():
    film_steps = stacked(list(dream(world.m, world.states(film_rows[:1]), given(memory.actions[film_rows][None]), len(film_rows) - 1)))
films = {"real": memory.stack(film_rows[1:])[:, -1].cpu(), "dream": v.decode(film_steps.state.z[0])[:, -1].cpu()}  # (T, 64, 64) each
film_pick = np.unique(np.linspace(0, len(film_rows) - 2, 7).astype(int))
show_pictures({name: film[film_pick] for name, film in films.items()}, "The same pushes, in reality and in a dream", [f"+{k + 1}" for k in film_pick])
show_film(torch.cat([film[:, ROWS_DRAWN] for film in films.values()], 1).numpy(), "above: real, below: dreamed, under the same pushes")

# %% [markdown]
# Above the last thirty steps of the first random episode that is long enough, below the dream under the same pushes. It starts from real frames and then never looks again. Cart and pole stay together with the real ones. But the drawing is poor, with a faint pole and dust around it: so long a random episode has carried the cart to the left, where few recorded frames lie, and V draws badly what it has seldom seen. (M has practised on this episode; part 9 measures dreams on new ones.)
#
# And how fast is a dream? We time a whole generation's worth of dreams against the real, rendered environment. **Predict** the ratio before you look.

# %% tags=["run"]
import timeit

pool = world.states(*world.moments(START_POOL, torch.Generator().manual_seed(settings.seed)))
crowd = pool.pick(torch.arange(settings.c.population * settings.c.rollouts, device=DEVICE) % len(pool.z))  # as many dreams as one generation of C
always_right, rendered = torch.ones(len(crowd.z), settings.c.horizon, device=DEVICE), pixel_cartpole()
with torch.no_grad():
    dream_seconds = timeit.repeat(lambda: list(dream(world.m, crowd, given(always_right), settings.c.horizon))[-1].state.z.cpu(), number=1, repeat=5)
real_seconds = timeit.repeat(lambda: [rendered.reset(seed=k) if k % 20 == 0 else rendered.step(k % 2) for k in range(200)], number=1, repeat=5)
dream_rate, real_rate = len(crowd.z) * settings.c.horizon / float(np.median(dream_seconds)), 200 / float(np.median(real_seconds))
print(f"{dream_rate:,.0f} dreamed steps a second, {real_rate:,.0f} real ones: {dream_rate / real_rate:,.0f} to 1")

# %% [markdown]
# Hundreds of dreamed steps go by in the time of one rendered step, because nearly a thousand dreams share each matrix product.
#
# ### The variance mask, τ, and two heads
#
# In a dream, noise should enter where M is really unsure, and nowhere else. M's doubt tells: a dimension is *noisy* if the variance of its next value, averaged over real steps, exceeds a small share of the dimension's variance in the data. The temperature τ scales the noise.
#
# **Predict** what the reward head has learned: what does CartPole pay for a good step, and what for the last step before the fall?


# %% tags=["define"]
@torch.no_grad()
def variance_mask(world: World, threshold: float, seed: int) -> tuple[Tensor, Tensor]:
    """Which dimensions get noise in a dream: (Z,) 1.0 or 0.0, and (Z,) the share of variance that M can not predict."""
    rows, copies = world.moments(512, torch.Generator().manual_seed(seed), copies=1)
    says = world.m.says(world.m.step(world.states(rows, copies), world.memory.actions[rows]))
    share = says.log_var.exp().mean(0) / world.codes.mu[0].var(0)  # (Z,)
    return (share > threshold).float(), share


# %% alt="Bars of the share of variance that M can't predict, one for each latent dimension: two are above the threshold." tags=["run"]
noisy, unsure_share = variance_mask(world, settings.c.mask_threshold, settings.seed)
unsure = {"bars": unsure_share.sort(descending=True).values.cpu(), "levels": {"threshold": settings.c.mask_threshold}, "ylabel": "unpredicted share"}
plot(unsure | {"xlabel": "latent dimension, sorted", "yscale": "log"}, title="Where M is unsure", size=(8, 2.6))
print(f"{int(noisy.sum())} of {len(noisy)} dimensions get noise in a dream")

last_rows = memory.rows[(memory.rows < memory.last) & (memory.rows - memory.first >= settings.m.context // 2)]  # (S,) steps that lead somewhere
heads = world.m.says(world.m.step(world.states(last_rows), memory.actions[last_rows]))
ended, called = memory.done[last_rows + 1], heads.done > 0  # (S,) each; a logit above 0 is a probability above one half
found_share, right_share = (100 * int((called & ended).sum()) / max(1, int(flags.sum())) for flags in (ended, called))
print(f"reward head: {number(float(heads.reward[~ended].mean()), 3)} on steps in mid-episode, {number(float(heads.reward[ended].mean()), 3)} on last steps\n"
      f"termination head: finds {found_share:.0f} % of the ends (recall); {right_share:.0f} % of its calls are right (precision)")  # fmt: skip

# %% [markdown]
# Each bar is one dimension; above the red line it gets noise. Only 2 of the 64 pass: one step ahead M is rarely unsure. C's dreams run at `c.temperature` τ = 0, without noise; raise it in the form and see, or look at the remedies of part 9.
#
# The reward head is blind: it says 1, always, and it is right: CartPole pays 1 for every step, the fatal one included. A dream judged by this head alone would find all controllers equally good. So the imagined return multiplies in the *survival probability* from the termination head, $\sum_k \hat r_k \prod_{j \le k} (1 - p_{\text{done},j})$. Why a probability, and not a hard end? Because most candidates survive thirty steps, and a slightly safer one must score slightly better. An episode that ran out of time (truncation) is not an end: the pole was still standing.


# %% [markdown]
# (You want to steer a dream yourself? Part 14 has one to play with; so has the file `assets/dream.html`, in any browser.)
#
# <details><summary><b>Exercise 5.</b> How many dreamed steps a second can a machine do at best that multiplies matrices at 100 GFLOP/s? (Solution)</summary>
#
# One step multiplies (z, Δz, push, h), 321 numbers, by a matrix of 321 × 768, and h by one of 192 × 130 (64 changes, 64 doubts, two heads), at two operations per entry: 542,976. So 100 GFLOP/s allow 184,000 steps a second. `tests/benchmark.py` measures both numbers on your machine.
# </details>

# %% [markdown]
# ## 7 · C: learning to act without acting
#
# C is as small as can be: push right if $w \cdot (z, h) + b > 0$, else left. Its weights are found by **CMA-ES** (Hansen & Ostermeier 2001), which needs no gradient: it keeps a normal distribution over the weights, draws a population from it, lets each candidate live through some dreams, and moves and reshapes the distribution towards the better half. Here it goes down a narrow valley.

# %% tags=["define"]
import nevergrad as ng

SIGMA = 0.5  # first step size of CMA-ES; for a linear C only a change of scale (exercise 6)


def make_cma(dimensions: int, c: CSettings, seed: int) -> Any:
    """CMA-ES from nevergrad, with its silent restarts turned off, all of them."""
    # pycma has stop criteria, and nevergrad answers a stop by starting anew from the first point without a word. A dream that saturates would
    # trigger some. And since only the direction of a linear C matters, its scale drifts upwards: at a thousand times the first σ another one fires.
    parameters = ng.p.Array(init=np.zeros(dimensions)).set_mutation(sigma=SIGMA)
    parameters.random_state = np.random.RandomState(seed)
    never = {"tolfun": 0, "tolfunhist": 0, "tolfunrel": 0, "tolflatfitness": 10**9, "tolstagnation": 0, "tolx": 0, "verbose": -9}
    never |= {"tolfacupx": 1e300, "tolupsigma": 1e300, "tolconditioncov": 1e300, "tolxstagnation": False, "maxiter": 10**12, "maxfevals": 10**15}
    return ng.optimizers.ParametrizedCMA(popsize=c.population, inopts=never)(parameters, budget=c.generations * c.population, num_workers=c.population)


def cma_mean(optimizer: Any) -> np.ndarray:
    """The mean of the search distribution: steadier than `recommend()`, which returns the luckiest single candidate."""
    return optimizer.parametrization.spawn_child().set_standardized_data(optimizer.es.mean).value


# %% alt="Four generations of CMA-ES on a narrow valley: the cloud of candidates stretches along it, walks down it and contracts at the bottom." tags=["run"]
valley, drawn = make_cma(2, settings.c.but(population=20, generations=25), settings.seed), []
for _ in range(25):
    candidates = [valley.ask() for _ in range(20)]
    drawn.append(np.array([candidate.value for candidate in candidates]))
    for candidate, (first, second) in zip(candidates, drawn[-1]):
        valley.tell(candidate, 25 * (second - first) ** 2 + (first + second - 6) ** 2)  # narrow across first = second, and deepest at (3, 3)
grid = np.meshgrid(np.linspace(-2, 5, 200), np.linspace(-2, 5, 200))
for place, generation in enumerate((1, 4, 8, 25)):
    plt.figure("valley", figsize=(12, 3.2)).add_subplot(
        1, 4, place + 1, xlabel="first weight", ylabel="second weight", title=f"generation {generation}", xlim=(-2, 5), ylim=(-2, 5)
    )
    plt.contour(*grid, 25 * (grid[1] - grid[0]) ** 2 + (grid[0] + grid[1] - 6) ** 2, levels=[1, 5, 20, 80, 300], colors=GREY, linewidths=0.8)
    plt.plot(*drawn[generation - 1].T, "o", color=BLUE, ms=4)
plt.show()

# %% [markdown]
# Each dot is a candidate, each line a height. The cloud first stretches along the valley, then walks down it, and contracts at the bottom: it has learned the valley's shape from heights alone.
#
# ### What a dream is worth
#
# Four details make a dream a useful judge (all candidates times 30 dreams are one batch):
#
# - **Common random numbers.** Within a generation every candidate meets the same starts (and the same noise), so that they are compared by skill, not by luck.
# - **Starts from real moments**, with $h$ from the real steps before them. Many are hard: random play is always about to fall.
# - **Survival probability**, not a hard end, as in part 6.
# - **The worth of the last state.** Thirty steps are enough to fall, far too short to drift out of the picture, so a controller that drifts would not be found out. The recipe asks for a penalty on ‖z‖ to keep dreams where the model knows its way. We give the *last* state a worth: the more familiar it is, the more steps of life it still promises. With $d^2$ the mean squared distance from the middle of the recorded data, along their 16 main directions and in their own standard deviations,
#
# $$R = \sum_{k=1}^{T} \hat r_k \prod_{j \le k} (1 - p_{\text{done},j}) \;+\; \frac{W}{1 + \kappa d_T^2} \prod_{j \le T} (1 - p_{\text{done},j})$$
#
# with $T$ = `c.horizon`, $W$ = `c.last_worth` and $\kappa$ = `c.penalty`. So with $T = W = 30$ a perfect dream that ends in the very middle is worth 60; one that ends in an average recorded state ($d^2 = 1$) is worth 37.5. This worth is *our* wish, not something that M found out: it tells C to stay in the middle.
#
# Why the last state only? Count familiarity at *every* step, and the best thing a controller can do in 30 steps is to hurry home. But a cart that hurries to the left makes its pole lean to the right: it must first go the wrong way. A controller that is paid at each step never does that.
#
# ### Where to search
#
# C is linear in all 256 numbers of $(z, h)$, but CMA-ES would need very many dreams to sort out 256 weights, most of which do not matter. Which directions do? We ask the recorded data, without looking at the true state:
#
# - directions that **obey a law**: they tell best what is seen ten steps later, once the effect of the pushes between is taken out (canonical correlation analysis, Hotelling 1936). Physics is such a law; a detail of how V happens to write down a picture is not;
# - directions that **grow**: a small difference now is a large one later. In this world that is the falling pole.
#
# Twelve of the first kind and eight of the second, less what both say, are the search space: two numbers chosen by trying, on other seeds. A candidate is a point in that small space; it becomes weights on the plain $(z, h)$ when it acts.


# %% tags=["define"]
class Axes(NamedTuple):
    """Directions of (z, h), scaled so that the data have unit variance along each of them."""

    mean: Tensor  # (Z + H,)
    directions: Tensor  # (Z + H, K)


def with_fixed_signs(mean: Tensor, directions: Tensor) -> Axes:
    """Axes of which each points to its positive side: an eigenvector's sign is arbitrary, and the same seed shall give the same search on every machine."""
    return Axes(mean.float(), (directions * directions.sum(0).sign()).float())


def principal_axes(read: Tensor, count: int) -> Axes:
    """The `count` leading principal components of some features (S, Z + H), whitened: along them familiarity is measured."""
    read = read.double()
    values, vectors = torch.linalg.eigh(torch.cov(read.T))  # ascending: (Z + H,), (Z + H, Z + H)
    return with_fixed_signs(read.mean(0), vectors[:, -count:] / values[-count:].clamp(min=1e-12).sqrt())


def without(pushes: Tensor, read: Tensor) -> Tensor:
    """Features (S, F) without their mean and without what a linear function of the pushes (S, K) explains."""
    pushes, read = pushes - pushes.mean(0), read - read.mean(0)
    return read - pushes @ torch.linalg.lstsq(pushes, read).solution


def inverse_root(read: Tensor) -> Tensor:
    """A matrix W (F, F) such that features @ W are uncorrelated and have unit variance; a little ridge keeps it finite."""
    ridge = 1e-4 * torch.eye(read.shape[1], dtype=read.dtype, device=read.device)
    return torch.linalg.inv(torch.linalg.cholesky(read.T @ read / len(read) + ridge)).T


def lawful_axes(now: Tensor, later: Tensor, pushes: Tensor, lawful: int, growing: int) -> Axes:
    """Directions of (z, h) that follow a linear law of motion, uncorrelated and of unit variance over the features `now` (S, Z + H).

    `lawful`: so many whose value K steps `later` is told best by the present (canonical correlations), once what the `pushes` between (S, K), −1 or +1,
    explain is taken out. `growing`: so many in which a difference of one deviation now is largest later."""
    now, later, pushes = now.double(), later.double(), pushes.double()
    mean, scale, found = now.mean(0), now.std(0) + 1e-3, []
    x, y = without(pushes, (now - mean) / scale), without(pushes, (later - mean) / scale)  # (S, F) each
    of_x, of_y = inverse_root(x), inverse_root(y)  # (F, F)
    for count, metric in ((lawful, of_y), (growing, of_x)):
        _, _, directions = torch.linalg.svd((y @ metric).T @ (x @ of_x) / len(x))  # of a matrix (F, F): later from now, both in deviations
        found.append(of_x @ directions[:count].T / scale[:, None])  # (F, count)
    directions = torch.cat(found, 1)
    values, vectors = torch.linalg.eigh(directions.T @ torch.cov(now.T) @ directions)
    kept = values > 1e-3 * values[-1]  # where both kinds say the same, one of them is enough
    return with_fixed_signs(mean, directions @ vectors[:, kept] / values[kept].sqrt())  # (F, up to lawful + growing)


# %% tags=["define"]
PAIRS = 20_000  # pairs of a moment and a later one from which the search space is found
LOOK_AHEAD = 10  # how much later that is, in steps
HOME_AXES = 16  # main directions of the recorded (z, h) along which familiarity is measured


@torch.no_grad()
def search_space(world: World, c: CSettings, generator: torch.Generator) -> Axes:
    """Where C is searched in one state of knowledge. It asks the recorded data only, never the true state."""
    rows, copies = world.moments(PAIRS, generator, LOOK_AHEAD)  # (S,) each
    now, later = (features(world.states(some, copies)) for some in (rows, rows + LOOK_AHEAD))  # (S, Z + H) each
    between = rows[:, None] + torch.arange(LOOK_AHEAD, device=rows.device)  # (S, K)
    return lawful_axes(now, later, 2.0 * world.codes.actions[copies[:, None], between].flatten(1) - 1, c.axes, c.growing)


def to_weights(axes: Axes, points: Tensor) -> Tensor:
    """Points (P, K + 1) of the search space -> weights (P, Z + H + 1) on the plain (z, h)."""
    weights = points[:, :-1] @ axes.directions.T  # (P, Z + H)
    return torch.cat([weights, points[:, -1:] - weights @ axes.mean[:, None]], 1)  # (P, Z + H + 1)


def act(weights: Tensor, read: Tensor) -> Tensor:
    """π for P controllers at once: push right (1, else 0) where w · (z, h) + b > 0; weights (P, Z + H + 1), features (P, R, Z + H) -> (P, R)."""
    return (torch.baddbmm(weights[:, -1:, None], read, weights[:, :-1, None])[..., 0] > 0).long()


def controller(weights: Tensor) -> Choose:
    """One controller (Z + H + 1,) as the one who acts in a dream."""
    return lambda k, state: act(weights[None], features(state)[None])[0]


def familiarity(read: Tensor, home: Axes, penalty: float) -> Tensor:
    """How familiar some features (B, Z + H) are: 1 / (1 + penalty · d²), with d² = 1 for an average recorded state; (B,) in (0, 1]."""
    return 1 / (1 + penalty * ((read - home.mean) @ home.directions).square().mean(1))


# %% tags=["define"]
def reward(state: State, says: Says) -> Tensor:
    """What a step pays: r̂ (B,)."""
    return says.reward


@torch.no_grad()
def dream_returns(
    m: M, weights: Tensor, starts: State, home: Axes, c: CSettings, noise: Tensor | None = None, pays: Callable = reward, reads: Callable = features
) -> Tensor:
    """The imagined return (P, R) of P controllers in R dreams each: Σ_k r̂_k · Π_{j≤k} (1 − p_done,j), and the worth of the last state.

    Args:
        weights: (P, Z + H + 1). starts: R states, the same for each controller. noise: (R, T, Z), masked, the same for each controller.
        pays, reads: what a step is worth, (B,), and what C may read of a state, (B, Z + H). A remedy of part 9 is another function here."""
    P, R = len(weights), len(starts.z)
    every = torch.arange(R, device=weights.device).repeat(P)  # (P·R,)
    alive, total = torch.ones(P * R, device=weights.device), torch.zeros(P * R, device=weights.device)

    def each_its_own(k: int, state: State) -> Tensor:
        """Each controller pushes in its own R dreams: (P·R,)."""
        return act(weights, reads(state).view(P, R, -1)).view(-1)

    for step in dream(m, starts.pick(every), each_its_own, c.horizon, tau=c.temperature, noise=None if noise is None else noise[every]):
        says = m.says(step.state)
        alive = alive * torch.sigmoid(-says.done)
        total += alive * pays(step.state, says)
    # The dream ends here, but the life it stands for would go on: how long, depends on where it ends.
    total += alive * c.last_worth * familiarity(features(step.state), home, c.penalty)
    return total.view(P, R)


# %% [markdown]
# ### Awake
#
# In the real world the same three parts work in a loop: V looks, C acts, M remembers. Its $h$ is made anew at each step from the last sixteen real ones, exactly as at the beginning of a dream, so C meets no $h$ that it has not dreamed of.


# %% tags=["define"]
class Agent:
    """C in the real world, callable by `play`: V reads the last four frames, M the last few steps (as at the beginning of a dream), C acts on (z, h)."""

    def __init__(self, world: World, choose: Choose, exploration: float = 0.0, seed: int = 0) -> None:
        """`choose`: who acts, as in a dream. In a share `exploration` of the steps a coin decides instead."""
        self.world, self.choose, self.stack = world, choose, None
        self.exploration, self.seed, self.dice = exploration, seed, {}

    @torch.no_grad()
    def __call__(self, fresh: np.ndarray, frames: np.ndarray, states: np.ndarray, seeds: list) -> np.ndarray:
        """One push (0 or 1) per environment, (W,). The true states are not used."""
        frame, new = (torch.from_numpy(values).to(DEVICE) for values in (frames, fresh))  # (W, 64, 64), (W,)
        if self.stack is None:  # nothing has been seen yet
            self.stack = frame[:, None].repeat(1, STACK, 1, 1)  # (W, 4, 64, 64)
            self.z = torch.zeros(len(frame), self.world.context + 1, self.world.codes.mu.shape[-1], device=DEVICE)  # (W, C + 1, Z)
            self.a, self.known = torch.zeros_like(self.z[:, :, 0]), torch.zeros_like(self.z[:, :, 0], dtype=torch.bool)  # (W, C + 1) each
        self.stack = torch.where(new[:, None, None, None], frame[:, None], torch.cat([self.stack[:, 1:], frame[:, None]], 1))
        z = self.world.v.encode(self.stack.float() / 255)[0]  # (W, Z)
        self.z = torch.where(new[:, None, None], z[:, None], torch.cat([self.z[:, 1:], z[:, None]], 1))
        self.known = torch.cat([self.known[:, 1:] & ~new[:, None], torch.ones_like(self.known[:, :1])], 1)
        self.a = self.a.roll(-1, 1)
        push = self.push(new).long()  # (W,)
        for k in range(len(frame)) if self.exploration > 0 else ():
            self.dice[k] = np.random.default_rng([self.seed, seeds[k]]) if fresh[k] else self.dice[k]  # an episode's coins depend on its seed alone
            if self.dice[k].random() < self.exploration:
                push[k] = int(self.dice[k].integers(2))
        self.a[:, -1] = push
        return push.cpu().numpy()

    def push(self, new: Tensor) -> Tensor:
        """The pushes now, (W,). `new` (W,): whose episode has just begun."""
        return self.choose(0, remembered(self.world.m, self.z, self.a, self.known))


def lives(policy: Policy, purpose: str, seed: int, episodes: int, workers: int, steps: int = 500) -> list[float]:
    """Real returns of a policy on the seeds of one purpose, in episodes of at most so many steps."""
    return [float(len(episode.actions)) for episode in play(policy, seeds_for(purpose, seed, episodes), workers, steps=steps)]


# %% [markdown]
# ### The search, and a thermometer
#
# Every 500 imagined updates (candidates evaluated), and after the first 1, 2, 4 and 8 generations, when C learns most, the mean of the search distribution takes a short look at the *real* world: two episodes of at most 200 steps. This is a thermometer. It is logged, and nothing else: nothing is trained on it, and nothing is chosen by it.
#
# So which controller ships? The rule was fixed before this seed was run: **the mean of the search's means over its second half**, each brought to unit length first, since only the direction of a linear C acts. Not the best of a dream or of a look: who picks a winner by luck reports luck as skill. A mean over many generations is steadier than any one of them.

# %% tags=["define"]
LOOK_STEPS = 200  # of a look at the real world: a thermometer need not be long


def learn(progress: Progress | None, world: World, pays: Callable = reward, reads: Callable = features, begins: State | None = None, *,
          c: CSettings, seed: int, workers: int) -> dict:  # fmt: skip
    """Evolve a controller wholly inside dreams, and look at the real world now and then, but never use it. `begins`: where dreams begin, if not in real moments.

    Saved are the returns of all generations: a resumed run replays them, for CMA-ES is a function of its seed and those. Returns `weights` (Z + H + 1,), what
    ships; `path` (G, Z + H + 1), the mean after each generation; `returns` (G, P); and of each look its `updates`, `real` returns and `dream` return."""
    generator = torch.Generator().manual_seed(seed)
    starts = begins or world.states(*world.moments(START_POOL, generator))
    home_read = features(world.states(*world.moments(START_POOL, generator, copies=1)))
    home, axes = principal_axes(home_read, min(HOME_AXES, home_read.shape[1])), search_space(world, c, generator)
    noisy, _ = variance_mask(world, c.mask_threshold, seed)
    optimizer, path, pace = make_cma(axes.directions.shape[1] + 1, c, seed), [], Pace(DEVICE)
    kept = (progress and progress.load()) or {"returns": [], "updates": [], "real": []}

    def dreamed(weights: Tensor, count: int, luck: torch.Generator) -> Tensor:
        """Returns (P, R) in R random dreams, the same for all."""
        pick = torch.randint(len(starts.z), (count,), generator=luck).to(starts.z.device)
        noise = noisy * torch.randn(count, c.horizon, len(noisy), generator=luck).to(noisy.device) if c.temperature > 0 else None  # (R, T, Z)
        return dream_returns(world.m, weights, starts.pick(pick), home, c, noise, pays, reads)

    for generation in (bar := tqdm(range(c.generations), desc="C", unit="generation", disable=progress is None)):
        candidates = [optimizer.ask() for _ in range(c.population)]
        new = generation >= len(kept["returns"])  # else it was evaluated before an interruption
        if new:
            points = torch.tensor(np.stack([candidate.value for candidate in candidates]), dtype=torch.float32, device=starts.z.device)  # (P, K + 1)
            luck = torch.Generator().manual_seed(1_000_003 * seed + generation)
            survived = pace.step(functools.partial(dreamed, to_weights(axes, points), c.rollouts, luck))  # (P, R)
            kept["returns"].append(survived.mean(1).cpu())  # (P,)
        for candidate, imagined in zip(candidates, kept["returns"][generation].tolist()):
            optimizer.tell(candidate, -imagined)
        if optimizer.es.countiter != generation + 1:
            raise RuntimeError("CMA-ES has started anew: one of pycma's stop criteria fired, and what it had learned is lost")
        mean = torch.tensor(cma_mean(optimizer), dtype=torch.float32, device=starts.z.device)  # (K + 1,)
        path.append(mean / mean[:-1].norm())
        updates = (generation + 1) * c.population
        due = generation in (0, 1, 3, 7) or updates // c.look_every > (updates - c.population) // c.look_every
        if new and due and progress:
            agent = Agent(world, controller(to_weights(axes, path[-1][None])[0]))
            kept["real"].append(lives(agent, "check", seed, c.look_episodes, workers, LOOK_STEPS))
            kept["updates"].append(updates)
            bar.set_postfix(dream=f"{kept['returns'][-1].mean():.1f}", real=f"{np.mean(kept['real'][-1]):.0f}")
            progress.save(kept)
            pace.look()
    path = torch.stack(path)  # (G, K + 1)
    ships = to_weights(axes, path[c.generations // 2 :].mean(0, keepdim=True))[0].cpu()  # (Z + H + 1,)
    path, looked = to_weights(axes, path), [updates // c.population - 1 for updates in kept["updates"]]
    # One common set of dreams, not used in training, so that the controllers that were looked at can be compared with each other.
    compared = dreamed(path[looked], 512, torch.Generator().manual_seed(seed)).mean(1).tolist() if looked else []
    return {"weights": ships, "path": path.cpu(), "returns": torch.stack(kept["returns"]), "updates": kept["updates"], "real": kept["real"], "dream": compared}


# %% [markdown]
# **Predict:** dream and reality on one time axis. After how many updates does C reach the full length of a look? (The dream return can pass 30, because the last state has a worth of its own.)

# %% alt="The return in dreams and in reality against imagined updates: both climb within the first few generations." tags=["run"]
c_settings = {"c": settings.c, "seed": settings.seed, "workers": settings.collect.workers}
c_stage = keep(learn, world, after=(practice_stage,), name="c", **c_settings)
learned = c_stage.result
ship = learned["weights"].to(DEVICE)  # (Z + H + 1,)
look_means = [float(np.mean(returns)) for returns in learned["real"]]
c_axes = {"xscale": "log", "xlabel": "imagined updates (candidates evaluated)"}
in_dreams = {"lines": {"_": (learned["updates"], learned["dream"], "s-")}, "ylabel": "return", "title": f"In dreams of {settings.c.horizon} steps"}
in_reality = {
    "lines": {"_": (learned["updates"], look_means, "o--")},
    "ylabel": "return (steps)",
    "title": f"In reality, looks of {LOOK_STEPS} steps",
    "ylim": (0, 1.05 * LOOK_STEPS),
}
plot(in_dreams | c_axes, in_reality | c_axes)
for updates, imagined, real in zip(learned["updates"], learned["dream"], look_means):
    print(f"after {updates:5,d} updates: dream return {imagined:5.1f}, real return {real:5.1f} of {LOOK_STEPS}")

# %% [markdown]
# Mind the logarithmic axis. Within the first 128 updates, four generations, the dream return climbs from 16.3 to 26.2, and the real one from 47 steps to the full 200. From there on reality can show nothing more (one of the eight later looks misses half a step), while the dream return still gains nearly four steps. The dream curve is the smoother one: each of its points is a mean over 512 dreams, in reality over two episodes.
#
# Is it really the world model that teaches C? The control experiment is the same search, a third as long, in the dreams of an **untrained** M. **Predict** how long its pole stands; a coin's falls after 22 steps on average.

# %% tags=["run"]
control_settings = c_settings | {"c": settings.c.but(generations=max(4, settings.c.generations // 3))}
control_stage = keep(learn, world._replace(m=m_untrained), after=(code_stage, m_stage), name="c-untrained-m", **control_settings)
control_agent = Agent(world._replace(m=m_untrained), controller(control_stage.result["weights"].to(DEVICE)))
control_returns = lives(control_agent, "check", settings.seed, settings.c.look_episodes, settings.collect.workers, LOOK_STEPS)
print(f"trained in an untrained M's dreams: {np.mean(control_returns):.0f} real steps")

# %% [markdown]
# In an untrained M's dreams no picture moves: it predicts the $z$ that it has just seen. So nothing about balance can be learned there. What comes out lives 10 steps, less than a coin. How to balance, C has learned from M. The wish to stay in the middle we added, with the worth of the last state; part 9 asks what that is worth.
#
# <details><summary><b>Exercise 6.</b> Multiply all weights and the bias of C by ten. What changes in the real world, and what for CMA-ES? (Solution)</summary>
#
# In the world nothing: C looks at the sign of a sum only. And CMA-ES starts at zero weights: with a ten times larger first step size (`SIGMA`) it draws the same candidates, each ten times as long, and they act in the same way. So for a linear C the step size changes nothing but the scale. It also means that nothing holds the scale: it drifts upwards through the search, until pycma calls that a failure and stops. See `make_cma`.
# </details>

# %% [markdown]
# ## 8 · Waking up
#
# 100 real episodes on seeds that were used for nothing else. No exploration, no selection, one run. Beside C play the two of part 1, on seeds of their own: the coin, and the hand-written rule.

# %% tags=["define"]
from scipy import stats


def final_test(progress: Progress, agent: Agent, *, purpose: str, episodes: int, seed: int, workers: int) -> dict:
    """Returns on the test seeds. The first eight episodes are kept with frames and states, for films and measurements."""
    played = play(agent, seeds_for(purpose, seed, episodes), workers, purpose)
    write_dataset(played[:8], progress.folder / "episodes", "C, test seeds")
    return {"returns": [float(len(episode.actions)) for episode in played], "parts": ["episodes"]}


def confidence_interval(values: list[float]) -> tuple[float, float]:
    """A 95 % bootstrap interval of the mean: how it varies when the values are drawn from themselves, again and again."""
    return tuple(map(float, stats.bootstrap((values,), np.mean, method="percentile", rng=0).confidence_interval))


def correlations(a: list[float], b: list[float]) -> tuple[float, float]:
    """Pearson's and Spearman's correlation; nan where one side does not vary."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan, math.nan
    return float(stats.pearsonr(a, b).statistic), float(stats.spearmanr(a, b).statistic)


# %% tags=["run"]
test_settings = {"episodes": settings.evaluate.episodes, "seed": settings.seed, "workers": settings.collect.workers}
test_stage, test_episodes = recorded(Agent(world, controller(ship)), function=final_test, after=(c_stage,), purpose="test", **test_settings)
test_returns = test_stage.result["returns"]
rivals = {"coin": RandomPolicy(settings.seed), "hand-written rule on the true state": hand_written_policy}
how_many = (settings.evaluate.baseline_episodes, settings.collect.workers)
baselines = {name: lives(policy, "baselines", settings.seed, *how_many) for name, policy in rivals.items()}
low, high = confidence_interval(test_returns)
who_plays = baselines | {"C, trained in dreams": test_returns}
print(f"mean of {len(test_returns)} real test episodes: {np.mean(test_returns):.1f}  (95 % interval {low:.1f} to {high:.1f}), worst {min(test_returns):.0f}")
print("\n".join(f"{name}: mean {np.mean(values):.1f}, from {min(values):.0f} to {max(values):.0f}" for name, values in who_plays.items()))
farthest = max(float(np.abs(episode.states[:, 0]).max()) for episode in test_episodes)
print(f"the cart stays within {farthest:.2f} m of the centre in the first {len(test_episodes)} of them")
if c_stage.key.startswith("pretrained"):
    print(f"V, M and C come from the checkpoint, trained with seed {c_stage.key.partition('-seed-')[2]}; they played here with seed {settings.seed}")

# %% alt="Returns of all episodes in bins of 25 steps: the coin's at the left, those of C and of the hand-written rule all at 500." tags=["run"]
plt.figure(figsize=(9, 3.4))
plt.hist(list(who_plays.values()), np.arange(0, 526, 25), color=(GREY, ORANGE, BLUE), label=list(who_plays))
plt.axvline(475, color=RED, ls="--", label="475: solved, says gymnasium")
plt.gca().set(xlabel="return (steps)", ylabel="episodes", title="Real episodes")
plt.legend(loc="upper center")
plt.show()

# %% [markdown]
# All episodes, in bins of 25 steps (the bars of one bin stand side by side). The coin's best episode lasts 51 steps. C does as well as the hand-written rule, which reads the true state: 500 steps in each of its 100 episodes, and in the first eight of them the cart never goes further than 0.10 m from the centre. The interval printed above says nothing here: however often one draws from a hundred times 500, the mean is 500.
#
# <details><summary><b>Exercise 7.</b> Suppose all 100 test episodes reach 500. What can you say about the probability p of a failure? (Solution)</summary>
#
# If p were 3 %, 100 episodes without a failure would have probability 0.97¹⁰⁰ = 0.048. So with 95 % confidence p is below 3 %: the *rule of three*, 3/n. A perfect score is not a proof of perfection.
# </details>
#
# ### Does a good dream mean a good life?
#
# Each controller that was looked at along the way has a dream return and a real return. If dreams are worth anything, the two must rise together. The recipe also asks how far imagined and real latents lie apart: the **KL** between what V sees and what M believes, one step ahead and thirty.


# %% tags=["define"]
def gaussian_kl(mu: Tensor, log_var: Tensor, says: Says) -> Tensor:
    """KL(q(z | x) ‖ p_M) in nats, summed over the dimensions: (..., Z) -> (...). The encoder's own noise is part of what an observer sees, so it is added to M's variance."""
    variance = says.log_var.exp() + log_var.exp()  # (..., Z)
    ratio = log_var.exp() / variance
    return 0.5 * (ratio - 1 - ratio.log() + (mu - says.mu).square() / variance).sum(-1)


def open_loop_kl(world: World, horizon: int) -> Tensor:
    """Mean KL after each of T steps alone, (T,): between V's posterior of the real latent and M's belief; nan where no episode is long enough."""
    rows, state = open_loop(world, windows(world.memory, world.context + horizon))
    return gaussian_kl(world.codes.mu[0, rows], world.codes.log_var[0, rows], world.m.says(state)).mean(0)


# %% alt="Dream return against real return of ten controllers: they rise together." tags=["run"]
pearson, spearman = correlations(learned["dream"], look_means)
plt.figure(figsize=(6.5, 3.6))
plt.scatter(learned["dream"], look_means, c=learned["updates"], cmap="viridis", norm="log", edgecolors="white")
plt.colorbar(label="imagined updates")
plt.gca().set(xlabel="dream return", ylabel=f"real return (of {LOOK_STEPS} steps)", title="One dot per look")
plt.show()
perfect = sum(mean == LOOK_STEPS for mean in look_means)
print(f"{len(look_means)} looks: Pearson {number(pearson, 2)}, Spearman {number(spearman, 2)}; {perfect} of them are perfect")
test_world = world.looking_at(test_episodes)
test_kl = open_loop_kl(test_world, 30)
kl_texts = [number(float(test_kl[k]), 1) for k in (0, 29)]
print(f"KL between real and imagined latents on the test episodes: {kl_texts[0]} nats one step ahead, {kl_texts[1]} after 30 steps alone")

# %% [markdown]
# They rise together (Pearson 0.96, Spearman 0.75). But be fair: these are all stops on one road, on which both returns grow with time, and 7 of the 10 looks are perfect, so their dots lie on one line. Dreams tell bad from good. Whether they also rank good ones cannot be seen here.
#
# Why does a controller tend to do worse in life than its dreams promise? Because it was *chosen* to look good in dreams. Where M errs in its favour, the search finds that place.
#
# The KL is 4.0 nats one step ahead and 95.3 after thirty: what M believes and what V sees drift apart, although M's doubt grows along the way.
#
# ### What is kept
#
# The film on the first page: the first test episode, as the real environment shows it, as V redraws it, and as M dreams it. Every 30 steps M reads sixteen real frames again; then it goes on alone, under the real pushes.


# %% tags=["define"]
@torch.no_grad()
def three_films(world: World, length: int, horizon: int = 30) -> np.ndarray:
    """Real, redrawn and dreamed frames of the first episode, one above the other: (T, 96, 64) in [0, 1]. M looks again every `horizon` steps."""
    read, memory = world.context, world.memory
    rows = memory.rows[memory.episode == 0][: length + read]
    z, a = world.codes.mu[0, rows][None], memory.actions[rows][None]  # (1, T, Z), (1, T)
    dreamed = [z[0, :read]]
    for first in range(0, len(rows) - read, horizon):
        last = min(first + read + horizon, len(rows))
        path = stacked(list(dream(world.m, world.m.begin(z[:, first]), given(a[:, first:]), last - first - 1, z[:, first : first + read])))
        dreamed.append(path.state.z[0, read - 1 :])
    pictures = [memory.stack(rows)[:, -1], *(world.v.decode(path)[:, -1] for path in (z[0], torch.cat(dreamed)))]  # (T, 64, 64) each
    return torch.cat([film[:, BAND] for film in pictures], 1)[read:].cpu().numpy()  # (T, 96, 64)


# %% alt="A film in three rows, of the first test episode: real, redrawn, dreamed." tags=["run"]
wake_film = three_films(test_world, 100)
if len(wake_film):
    show_film(wake_film, "from above: real, redrawn by V, dreamed by M (which looks once every 30 steps)")

# %% [markdown]
# Two seconds of its life, and by eye the three are hard to tell apart. It is kept, and so are the checkpoint (a `safetensors` file: tensors only, no code), sixteen imagined rollouts under random pushes for whoever wants to look at a dream without running one, and `manifest.json`, which holds the main numbers.

# %% cellView="form" tags=["define"]
# @title What the checkpoint and the manifest hold
from safetensors.torch import save as bytes_of


def strict(value: Any) -> Any:
    """The same value as strict JSON can hold it: what could not be measured (nan) becomes null."""
    if isinstance(value, dict):
        return {name: strict(part) for name, part in value.items()}
    return [*map(strict, value)] if isinstance(value, (list, tuple)) else None if isinstance(value, float) and not math.isfinite(value) else value


def save_checkpoint(path: Path, stages: list[Stage], settings: Settings) -> str:
    """Write the results of some stages to one safetensors file: tensors as tensors, everything else as JSON beside them. Returns the file's SHA-256."""
    parts = {f"{stage.name}/{name}": value for stage in stages for name, value in stage.result.items()}
    for name in [name for name, value in parts.items() if isinstance(value, dict)]:
        parts |= {f"{name}/{inner}": value for inner, value in parts.pop(name).items()}
    tensors = {name: part.cpu().clone(memory_format=torch.contiguous_format) for name, part in parts.items() if isinstance(part, Tensor)}  # no two share memory
    others = {name: part for name, part in parts.items() if not isinstance(part, Tensor)}
    about = {"settings": settings.model_dump(mode="json"), "values": others, "seconds": {stage.name: stage.seconds for stage in stages}}
    write_whole(path, content := bytes_of(tensors, {"about": json.dumps(strict(about), allow_nan=False)}))
    return hashlib.sha256(content).hexdigest()


def hardware_name(device: torch.device) -> str:
    """The GPU's name, or the number of CPU cores."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {os.cpu_count()} cores, no GPU"


def open_loop_rows(table: dict[str, Tensor]) -> dict:
    """Median open-loop errors (T, 4) by name, at a few horizons: θ in degrees and x in metres."""
    at = {name: {k: errors[k - 1].tolist() for k in HORIZONS} for name, errors in table.items()}
    return {name: {str(k): {"theta_degrees": math.degrees(row[2]), "x_metres": row[0]} for k, row in rows.items()} for name, rows in at.items()}


@torch.no_grad()
def imagined_rollouts(world: World, starts: State, seed: int, count: int = 16, steps: int = 30) -> dict[str, Tensor]:
    """Dreams under random pushes: `z` (B, T, Z), `survive` (B, T) the probability to be alive after each step, `actions` (B, T)."""
    pushes = torch.randint(2, (count, steps), generator=torch.Generator().manual_seed(seed)).to(starts.z.device)
    path = stacked(list(dream(world.m, starts.pick(slice(count)), given(pushes), steps)))
    return {"z": path.state.z.cpu(), "survive": torch.sigmoid(-world.m.says(path.state).done).cumprod(1).cpu(), "actions": pushes.cpu()}


# %% cellView="form" tags=["run"]
# @title Save the checkpoint, imagined rollouts and the manifest
OUT = usable_folder(Path(os.environ.get("WM_OUT_FOLDER", RUN_FOLDER / "what_is_kept")), "WM_OUT_FOLDER")
kept_stages = [v_stage, broken_stage, m_stage, practice_stage, c_stage, control_stage]
digest = save_checkpoint(OUT / "checkpoint.safetensors", kept_stages, settings)
write_whole(OUT / "film.png", film_of(wake_film) if len(wake_film) else b"")
write_whole(OUT / "imagined_rollouts.safetensors", bytes_of(imagined_rollouts(world, pool, settings.seed)))
own_z, own_zh = z_probe.score(test_world.codes.mu[0], test_world.memory.states), zh_probe.score(*read_rows(test_world))
real_steps_of = {
    "random play, trained on": random_steps, "looks, only logged": int(sum(map(sum, learned["real"])) + sum(control_returns)),
    "measured, by others than C": int(sum(len(episode.actions) for episode in good_episodes) + sum(map(sum, baselines.values()))), "test": int(sum(test_returns)),
}  # fmt: skip
manifest = {
    "profile": profile_name(PROFILE), "seed": settings.seed, "hardware": hardware_name(DEVICE),
    "versions": {"python": platform.python_version()} | {module.__name__: module.__version__ for module in (torch, gym, datasets, np, ng)},
    "stages": {stage.name: round(stage.seconds, 1) for stage in [collect, code_stage, good_stage, *kept_stages, test_stage]},
    "parameters": {"V": sum(p.numel() for p in v.parameters()), "M": sum(p.numel() for p in world.m.parameters()), "C": len(ship)},
    "real_steps": real_steps_of, "real_returns": test_returns, "real_return_mean": float(np.mean(test_returns)),
    "baseline_returns": {name: float(np.mean(values)) for name, values in baselines.items()} | {"untrained M": float(np.mean(control_returns))},
    "probe_r2": {"z": {"random": z_score["r2"], "controller": own_z["r2"]}, "z_h": {"random": zh_score["r2"], "controller": own_zh["r2"]}},
    "probe_rms": {"z": {"random": z_score["rms"], "controller": own_z["rms"]}, "z_h": {"random": zh_score["rms"], "controller": own_zh["rms"]}},
    "open_loop_error": open_loop_rows(after_practice | before_practice | swaying), "latent_kl": {"1": float(test_kl[0]), "30": float(test_kl[29])},
    "dream_real": {"pearson": pearson, "spearman": spearman, "updates": learned["updates"], "dream": learned["dream"], "real": look_means},
    "dream_steps_per_s": dream_rate, "real_steps_per_s": real_rate, "checkpoint_sha256": digest,
}  # fmt: skip
write_whole(OUT / "manifest.json", json.dumps(strict(manifest), indent=1, allow_nan=False).encode())
print(f"on C's own episodes, (z, h) read: θ to {number(math.degrees(own_zh['rms']['theta']), 2, '°')}, x to {number(1000 * own_zh['rms']['x'], 0, ' mm')}")
print("real steps:", "; ".join(f"{name}: {count:,}" for name, count in real_steps_of.items()))
print(f"checkpoint: {(OUT / 'checkpoint.safetensors').stat().st_size / 1e6:.1f} MB, SHA-256 {digest[:12]}…")

# %% [markdown]
# ## 9 · When the dream lies
#
# Everybody who trains in a dream meets the same wall: the dream stands, and the real pole falls. Our own search went through such a place. Of the controllers that were looked at along the way we take the one that reality paid least.
#
# We play its worse look once more, go back to thirty steps before the end, and let the dream take over from there. **Predict:** at which step will the dream part from reality?


# %% tags=["define", "extra"]
@torch.no_grad()
def live_on(world: World, weights: Tensor, starts: State, steps: int) -> tuple[Tensor, Tensor]:
    """One controller (Z + H + 1,) in dreams: the imagined latents (S, T, Z), and the probability to be alive after each step (S, T)."""
    path = stacked(list(dream(world.m, starts, controller(weights), steps)))
    return path.state.z, torch.sigmoid(-world.m.says(path.state).done).cumprod(1)


# %% alt="The angle of a pole in reality and in a dream that lies, and pictures of both: the real one falls, the dreamed one stands." tags=["run", "extra"]
# Random play is always about to fall. For this question we take moments from which a good controller can survive.
read_pool = zh_probe(features(pool))  # (S, 4)
calm = pool.pick((read_pool[:, 2].abs() < math.radians(4)) & (read_pool[:, 3].abs() < 0.5)).pick(slice(512))  # angle in rad, angular velocity in rad/s
looked_at = [learned["path"][updates // learned["returns"].shape[1] - 1].to(DEVICE) for updates in learned["updates"]]
survived = [float(live_on(world, weights, calm, 30)[1].sum(1).mean()) for weights in looked_at]
liar = int(np.argmin(look_means))  # the one that reality paid least
print("\n".join(f"after {updates:5,d} updates: {steps:.1f} of 30 dreamed steps, {real:5.1f} of {LOOK_STEPS} real ones" + "  <- paid least" * (k == liar)
                for k, (updates, steps, real) in enumerate(zip(learned["updates"], survived, look_means))))  # fmt: skip

liar_looks = play(
    Agent(world, controller(looked_at[liar])), seeds_for("check", settings.seed, settings.c.look_episodes), settings.c.look_episodes, steps=LOOK_STEPS
)
lied = world.looking_at([min(liar_looks, key=lambda episode: len(episode.actions))])  # the worse of its looks, once more
lie_begin = max(
    min(settings.m.context, (len(lied.memory) - 1) // 2), len(lied.memory) - 31
)  # thirty steps before its end, where that leaves M something to read
lie_steps = len(lied.memory) - 1 - lie_begin
lie_path, lie_alive = live_on(world, looked_at[liar], lied.states(lied.memory.rows[lie_begin : lie_begin + 1]), lie_steps)  # (1, T, Z), (1, T)
dreamed_angle = np.degrees(wide_probe(seen_again(v, lie_path))[0, :, 2].cpu().numpy())  # (T,)
real_angle = np.degrees(lied.memory.states[lie_begin + 1 :, 2].cpu().numpy())  # (T,)
lie_time, lie_pick = range(1, lie_steps + 1), np.unique(np.linspace(0, lie_steps - 1, 6).astype(int))
plot({"lines": {"real": (lie_time, real_angle), "dreamed": (lie_time, dreamed_angle)}, "levels": {"the episode ends": math.copysign(12, real_angle[-1])},
      "xlabel": "steps since the dream began", "ylabel": "angle θ (degrees)", "title": "The same controller, in reality and in its dream"}, size=(7, 3))  # fmt: skip
lie_films = {"real": lied.memory.stack(lied.memory.rows[lie_begin + 1 :])[lie_pick, -1], "dream": v.decode(lie_path[0])[lie_pick, -1]}
show_pictures(lie_films, "The last steps of that life, real and dreamed", [f"+{k + 1}" for k in lie_pick], slice(0, 64))
agree = np.flatnonzero(np.abs(dreamed_angle - real_angle) <= 2)  # the steps at which the two still agree
print(f"its real episode lasted {lie_begin + lie_steps} steps; the dream gives it a {100 * lie_alive[0, -1]:.0f} % chance to be alive at its end")
print(
    f"both angles agree within 2° for the last time at step {agree[-1] + 1 if len(agree) else 0}; at the end they read {real_angle[-1]:.1f}° and {dreamed_angle[-1]:.1f}°"
)

# %% [markdown]
# After its first generation, 32 updates, C survives 20.3 of 30 dreamed steps, and its worse look ends after 45 real ones. The dream swings as reality does, but it is a few degrees off from the start, and agrees within 2° for the last time at step 13. At the end the real pole tips over to the right, to 13.4°, while the dreamed one leans by 4.9° and stands: M gives this dream an 84 % chance to be alive at its end. The dreamed pictures are clean all along. A dream that lies need not look like one.
#
# This is why the return that C is trained on does not stop at counting steps, and why the search does not stop at the first dream that looks good.
#
# ### Drift: how fast a dream leaves reality
#
# Thirty steps are what C trains on. How does it go on to a hundred? We ask for the **error** of angle and position as in part 5, and for M's **calibration**: how often does the true latent lie in M's 50 % interval, and how often in its 90 % one? M has seen none of these episodes: the good rule's, and a few hundred new random ones (these are short, so their curves end early).

# %% tags=["define", "extra"]
WIDTH = {50: 0.6745, 90: 1.645}  # half the width of a normal distribution's 50 % and 90 % interval, in σ


def drift(world: World, probe: Probe, rows: Tensor) -> dict[str, Tensor]:
    """What becomes of M's predictions on windows `rows` (S, C + T), over the T steps without looking, (T,) each; nan without windows.

    `theta` (degrees) and `x` (mm), median errors as a spectator would read them; `kl` (nats); `50` and `90`, per cent of true latents inside M's intervals."""
    rows, state = open_loop(world, rows)  # (S, T)
    says = world.m.says(state)
    truth, log_var = world.codes.mu[0, rows], world.codes.log_var[0, rows]  # (S, T, Z) each
    error = median((probe(seen_again(world.v, says.mu)) - world.memory.states[rows]).abs())  # (T, 4)
    surprise = (truth - says.mu).abs() / (0.5 * says.log_var).exp()  # (S, T, Z)
    inside = {str(share): 100 * (surprise < width).float().mean((0, 2)) for share, width in WIDTH.items()}
    return {"theta": torch.rad2deg(error[:, 2]), "x": 1000 * error[:, 0], "kl": gaussian_kl(truth, log_var, says).mean(0), **inside}


# %% alt="Drift over a hundred steps: the errors of angle and position grow, and the share of true latents inside M's intervals falls." tags=["run", "extra"]
fresh_settings = {"episodes": settings.evaluate.fresh_episodes, "seed": settings.seed + 1, "workers": settings.collect.workers}
fresh_stage, fresh_episodes = recorded(RandomPolicy(settings.seed + 1), purpose="fresh", **fresh_settings)
fresh_world = world.looking_at(fresh_episodes)
longest_alone = max(1, min(40, max(len(episode.actions) for episode in fresh_episodes) - settings.m.context - 1))
drifts = {name: drift(its, wide_probe, windows(its.memory, its.context + horizon, 300))
          for name, its, horizon in (("good play", good_world_practised, 100), ("random play", fresh_world, longest_alone))}  # fmt: skip
time_of = {name: range(1, len(found["x"]) + 1) for name, found in drifts.items()}
plot(*(
    {"lines": {name: (time_of[name], found[key].cpu()) for name, found in drifts.items()}, "xlabel": "steps without looking", "ylabel": label, "ylim": (0, None)}
    for key, label in (("theta", "median |error| of θ (degrees)"), ("x", "median |error| of x (mm)"))
), {"lines": {f"{share} %, {name}": (time_of[name], found[str(share)].cpu()) for name, found in drifts.items() for share in WIDTH},
    "levels": {"_50": 50, "an honest M": 90}, "xlabel": "steps without looking", "ylabel": "inside M's interval (%)", "ylim": (0, 102)}, size=(4.6, 3.6))  # fmt: skip
print("\n".join(
    f"{name:11s} {k:3d} steps: θ {number(float(found['theta'][k - 1]), 2, '°'):>6s}, x {number(float(found['x'][k - 1]), 0, ' mm'):>6s}, KL {number(float(found['kl'][k - 1]), 0):>3s} nats,"
    f" inside 50 %: {number(float(found['50'][k - 1]), 0, ' %')}, 90 %: {number(float(found['90'][k - 1]), 0, ' %')}"
    for name, found in drifts.items() for k in (1, 5, 12, 30, 60, 100) if k <= len(found["x"])
))  # fmt: skip

# %% [markdown]
# On good play the angle is off by a third of a degree at first and by 2.2° after 30 steps. After 60 the dream has lost the pole (10.4°), and after 100 the cart as well (0.8 m). The right picture says how well a dream knows its own errors: rather well. Within 30 steps between 86 and 97 % of the true latents lie in M's 90 % interval on good play, and between 82 and 93 % on random play; after 100 steps, far beyond the 24 for which M has practised living alone at most, its doubt has grown so wide that nearly all do. It is not perfect: on random play the 50 % interval holds only 43 % after five steps. (Some of this growth is no fault of M's: a pole magnifies what was wrong at first. Exercise 8.)
#
# A longer question to the same dream: C itself, in dreams of 150 steps, five times as long as those it was trained in. They begin in moments of its own test episodes, so we know what reality did: it stood. **Predict** how many of the dreams are still alive at the end.

# %% alt="How many dreamed poles are alive, and how far they lean, over 500 steps, beside reality." tags=["run", "extra"]
test_age = test_world.memory.rows - test_world.memory.first
from_life = test_world.memory.rows[
    (test_age >= settings.m.context) & ((test_age - settings.m.context) % 20 == 0) & (test_age < 300) & (test_world.memory.rows < test_world.memory.last)
]
long_path, long_alive = live_on(world, ship, test_world.states(from_life), 150)  # (S, T, Z), (S, T)
long_angle = torch.rad2deg(wide_probe(seen_again(v, long_path[:, 9::10]))[..., 2].square().mean(0).sqrt()).cpu()  # (15,)
in_life = math.degrees(test_world.memory.states[:, 2].square().mean().sqrt())
plot(
    {"lines": {"_": (range(1, 151), 100 * long_alive.mean(0).cpu())}, "xlabel": "imagined steps", "ylabel": "dreams still alive (%)", "ylim": (0, 102)},
    {"lines": {"in dreams": (range(10, 151, 10), long_angle)}, "levels": {"in reality": in_life}, "xlabel": "imagined steps", "ylabel": "rms of θ (degrees)", "ylim": (0, None)},
    title="C in dreams five times as long",
)  # fmt: skip
long_shares = ", ".join(f"{100 * long_alive[:, k - 1].mean():.0f} %" for k in (30, 60, 100, 150))
print(f"alive after 30, 60, 100, 150 steps: {long_shares}; angle at the end {long_angle[-1]:.1f}° rms, in reality {in_life:.1f}°")

# %% [markdown]
# 82 % are alive at the end, where in reality all stood, and the angle has grown to 1.3°, twice what it is in reality. So dreams stand on their feet far beyond the thirty steps in which C learned. But M takes a little chance of death off at every step, so 96 % are alive after the first thirty already. A dream return is good for comparing controllers, not for telling how long one lives.
#
# ### A doorkeeper: does this moment look real?
#
# A dream never says that it has left reality. A **verifier** is a small network that tries to: it looks at where a life stands after a step, $(z_{t+1}, z_{t+1} - z_t, h_{t+1})$, and says how likely that is a recorded moment. We train it by contrast. The positives are real moments. The negatives are imagined ones with a perturbed latent, of two kinds: M's prediction with noise added to it, and M's prediction from a $z_t$ that had already drifted. (It is our own construction, not a paper's. C does not need it.)
#
# The measure is the **AUROC**: the probability that a random real moment gets a higher score than a random false one (½ is guessing). All come from episodes that the verifier has not seen. **Predict:** noise it will spot. But a step under the wrong push? A world that stands still for one step? And a dream?


# %% tags=["define", "extra"]
class Verifier(nn.Module):
    """Is this a recorded moment? A network with two hidden layers. It returns logits: positive means real, and their sigmoid is the confidence."""

    def __init__(self, latents: int, hidden: int) -> None:
        """`latents`, `hidden`: the sizes of z and h."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(2 * latents + hidden))
        self.register_buffer("scale", torch.ones(2 * latents + hidden))
        self.layers = nn.Sequential(nn.Linear(2 * latents + hidden, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 1))

    def look(self, state: State) -> Tensor:
        """What it reads, (..., 2Z + H)."""
        return torch.cat([state.z, state.z - state.before, state.h], -1)

    def forward(self, state: State) -> Tensor:
        """Logits (...)."""
        return self.layers((self.look(state) - self.mean) / self.scale)[..., 0]


# %% tags=["define", "extra"]
VERIFIER_POOL = 20_000  # recorded steps to learn from


def real_steps(world: World, count: int, episodes: range, generator: torch.Generator) -> tuple[State, Tensor, State]:
    """`count` recorded steps at random, of all copies, from some of the episodes: the states before, the pushes (B,), the states after."""
    rows, copies = world.moments(count, generator, episodes=episodes)  # (B,) each
    now, a = world.states(rows, copies), world.codes.actions[copies, rows]
    after = world.m.step(now, a)
    return now, a, after._replace(z=world.codes.mu[copies, rows + 1], blind=now.blind)


def false_steps(m: M, now: State, a: Tensor, spread: Tensor, generator: torch.Generator) -> State:
    """What M imagines in place of recorded steps, with noise of 3 % to 100 % of the data's `spread` (Z,): in half of them on the next z, in the others on the present one."""
    size = 10 ** (-1.5 * torch.rand(len(a), 1, generator=generator)).to(a.device)  # (B, 1)
    noise = size * spread * torch.randn(now.z.shape, generator=generator).to(a.device)  # (B, Z)
    drifted = torch.arange(len(a), device=a.device)[:, None] % 2 == 0  # (B, 1)
    after = m.step(now._replace(z=now.z + noise * drifted), a)
    return after._replace(z=after.z + noise * ~drifted)


def train_verifier(progress: Progress, world: World, *, verifier: TrainSettings, seed: int) -> dict:
    """Train the verifier on recorded steps of the first 80 % of the episodes, and on false ones made from them."""
    torch.manual_seed(seed)
    first = range(round(0.8 * len(world.memory.episodes)))
    now, a, after = real_steps(world, VERIFIER_POOL, first, torch.Generator().manual_seed(seed))
    model = Verifier(now.z.shape[1], now.h.shape[1]).to(now.z.device)
    model.mean.copy_(model.look(after).mean(0))
    model.scale.copy_(model.look(after).std(0) + 1e-3)
    truth = torch.cat([torch.ones(verifier.batch), torch.zeros(verifier.batch)]).to(now.z.device)  # (2B,)
    spread = world.codes.mu[0].std(0)  # (Z,)

    def batch_loss(generator: torch.Generator, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one random batch, and what to log."""
        pick = torch.randint(len(a), (verifier.batch,), generator=generator).to(a.device)
        false = false_steps(world.m, now.pick(pick), a[pick], spread, generator)
        loss = F.binary_cross_entropy_with_logits(torch.cat([model(after.pick(pick)), model(false)]), truth)
        return loss, {"loss": loss}

    return fit(model, batch_loss, verifier, seed, progress, "verifier")


# %% tags=["run", "extra"]
verifier_stage = keep(train_verifier, world, after=(practice_stage,), name="verifier", verifier=settings.verifier, seed=settings.seed)
verifier = frozen(Verifier(settings.v.latents, settings.m.hidden), verifier_stage.result)


# %% tags=["define", "extra"]
def auroc(real: Tensor, false: Tensor) -> float:
    """The probability that a random real step scores higher than a random false one: (S,) and (F,) scores; ties count half (Mann and Whitney's U)."""
    return float(stats.mannwhitneyu(real.cpu(), false.cpu()).statistic / (len(real) * len(false)))


def unseen_kinds(m: M, now: State, a: Tensor, after: State, spread: Tensor) -> dict[str, State]:
    """False moments of kinds that the verifier was not trained on, by name."""
    return {
        "M's step under the other push": after._replace(z=m.step(now, 1 - a).z),
        "a fifth of the way to another moment": after._replace(z=after.z + 0.2 * (after.z.roll(1, 0) - after.z)),
        "half a spread off in 8 dimensions": after._replace(z=after.z + 0.5 * spread * (torch.arange(len(spread), device=spread.device) < 8)),
        "the world stands still": after._replace(z=now.z),
    }


def reliability(trust: Tensor, truth: Tensor, bins: int = 10) -> tuple[list[float], list[float], float]:
    """Mean confidence and share of real steps in each tenth of the confidence scale, and the mean gap between them, weighted by count."""
    place = (trust * bins).long().clamp(max=bins - 1)
    here = [place == k for k in range(bins) if (place == k).any()]
    said, true = ([float(values[part].float().mean()) for part in here] for values in (trust, truth))
    return said, true, sum(float(part.float().mean()) * abs(a - b) for part, a, b in zip(here, said, true))


# %% alt="Left: the verifier's confidence against the share of real moments. Right: how its confidence falls along a dream." tags=["run", "extra"]
judge_luck, others = torch.Generator().manual_seed(settings.seed + 2), range(round(0.8 * len(memory.episodes)), len(memory.episodes))
judged_now, judged_a, judged = real_steps(world, 4_096, others, judge_luck)
spread_z = codes.mu[0].std(0)  # (Z,)
kinds = {
    "noise, as in training": false_steps(world.m, judged_now, judged_a, spread_z, judge_luck),
    **unseen_kinds(world.m, judged_now, judged_a, judged, spread_z),
}
verifier_auroc = {name: auroc(verifier(judged), verifier(false)) for name, false in kinds.items()}
print("\n".join(f"{name:40s} AUROC {value:.3f}" for name, value in verifier_auroc.items()))
door_scores = torch.sigmoid(torch.cat([verifier(judged), verifier(kinds["noise, as in training"])]))
said, true, verifier_gap = reliability(door_scores, torch.arange(len(door_scores), device=DEVICE) < len(judged_a))
coin_pushes = torch.randint(2, (len(judged_a), 30), generator=judge_luck).to(DEVICE)  # (B, T)
dream_auroc = [auroc(verifier(judged), verifier(step.state)) for step in dream(world.m, judged, given(coin_pushes), 30)]
plot(
    {"lines": {"_honest": ([0, 1], [0, 1], "k:"), "_": (said, true, "o-")}, "xlabel": "the verifier's confidence", "ylabel": "share of real moments", "title": "Calibration"},
    {"lines": {"_": (range(1, 31), dream_auroc)}, "xlabel": "dream step", "ylabel": "AUROC", "ylim": (0.45, 1.02), "title": "Real moments against dreamed ones"},
)  # fmt: skip
print(f"calibration gap {verifier_gap:.3f}; AUROC after 1, 10, 30 dreamed steps: {dream_auroc[0]:.2f}, {dream_auroc[9]:.2f}, {dream_auroc[29]:.2f}")

# %% [markdown]
# It spots its own kind of noise (AUROC 0.93) and two of the new kinds (0.99 and 1.00). A world that stands still it sees less well (0.87), and a step under the wrong push least of all (0.62): a verifier knows the lies that it was shown. Its confidence is off by 0.04 on average (left). And genuine dreams? The first imagined steps are hard to tell from real ones (0.67 after one, less after two), those after thirty are easier (0.85). Still, it judges whether a latent *looks* real, not whether the story is true: the dream above had lost its pole while its pictures were clean.
#
# ### Remedies
#
# The recipe names five ways to keep a dream useful: a penalty on ‖z‖, grounding in real moments, a verifier, short horizons, and latent dropout. The main line needs none of them but grounding: all its dreams begin in recorded moments. Each remedy is a small function that is handed to the one search: what a step pays, what C may read, where dreams begin. Three rows take away something that ships. All searches are a third as long as ours, with two seeds each; C plays a few real episodes on check seeds. **Predict** which two rows do worst.


# %% tags=["define", "extra"]
import csv


def norm_penalty(state: State, says: Says) -> Tensor:
    """r̂ less 0.3 times the mean square of z, (B,)."""
    return says.reward - 0.3 * state.z.square().mean(1)


def trusted(verifier: Verifier) -> Callable[[State, Says], Tensor]:
    """r̂ times the verifier's confidence, (B,)."""
    return lambda state, says: says.reward * torch.sigmoid(verifier(state))


def with_dropout(c: CSettings, latents: int, seed: int) -> Callable[[State], Tensor]:
    """What C reads where a fifth of z is hidden (0), other numbers in each of its dreams, the same for all candidates: (P·R, Z + H)."""
    shown = (torch.rand(c.rollouts, latents, generator=torch.Generator().manual_seed(seed)) > 0.2).repeat(c.population, 1).to(DEVICE)  # (P·R, Z)
    return lambda state: features(state._replace(z=state.z * shown))


def try_remedy(progress: Progress, world: World, *how: Any, c: CSettings, seed: int, seeds: int, workers: int) -> dict:
    """Search C with a remedy, once for each of some seeds, and let it play four real episodes each time: returns, and how far the cart went (m)."""
    lines = []
    for k in range(seeds):
        weights = learn(None, world, *how, c=c, seed=seed + k, workers=workers)["weights"]
        played = play(Agent(world, controller(weights.to(DEVICE))), seeds_for("remedies", seed, 4), workers)
        far = max(float(np.abs(episode.states[:, 0]).max()) for episode in played)
        lines.append({"real_mean": float(np.mean([len(episode.actions) for episode in played])), "farthest": round(far, 3)})
    return {"lines": lines}


def write_table(path: Path, lines: list[dict]) -> None:
    """Write lines of one kind as a CSV file."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def read_table(experiment: str) -> list[dict[str, str]]:
    """The lines of one experiment's table; none, and a sentence, where it is not at hand."""
    path = Path("assets") / "experiments" / f"{experiment}.csv"
    if not path.exists():
        print(f"{path.as_posix()} is not here: it was not measured yet")
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# %% tags=["run", "extra"]
short_c = settings.c.but(generations=max(4, settings.c.generations // 3))
with torch.no_grad():
    dream_ends = [step.state for step in dream(world.m, pool, controller(ship), settings.c.horizon)][-1]
remedies = {
    "as shipped": (short_c,),
    "penalty on the norm of z": (short_c, norm_penalty),
    "weighed by the verifier": (short_c, trusted(verifier)),
    "a fifth of z hidden from C": (short_c, reward, with_dropout(short_c, settings.v.latents, settings.seed)),
    "dreams of 15 steps": (short_c.but(horizon=15),),
    "noise, τ = 1": (short_c.but(temperature=1.0),),
    "without grounding: from where dreams ended": (short_c, reward, features, dream_ends),
    "without worth for the last state": (short_c.but(last_worth=0.0),),
    "without practice for M": (short_c,),
}
remedy_settings = {"seed": settings.seed, "seeds": settings.evaluate.remedy_seeds, "workers": settings.collect.workers}
remedy_lines = []
for row, (row_c, *how) in remedies.items() if settings.evaluate.remedy_seeds else ():
    made_in, made_by = (forced_world, m_stage) if row == "without practice for M" else (world, c_stage)
    remedy_stage = keep(try_remedy, made_in, *how, after=(made_by, verifier_stage), name=f"remedy-{list(remedies).index(row)}", c=row_c, **remedy_settings)
    remedy_lines += [{"row": row, "search": k, **line} for k, line in enumerate(remedy_stage.result["lines"])]
if remedy_lines:
    write_table(OUT / "remedies.csv", remedy_lines)
remedy_lines = remedy_lines or read_table("remedies")
remedy_means = {row: [float(line["real_mean"]) for line in remedy_lines if line["row"] == row] for row in dict.fromkeys(line["row"] for line in remedy_lines)}
for row, means in remedy_means.items():
    far = ", ".join(f"{float(line['farthest']):.2f}" for line in remedy_lines if line["row"] == row)
    print(f"{row:44s} real return, each search: {', '.join(f'{mean:.0f}' for mean in means):10s} the cart stays within {far} m")

# %% alt="Bars of real return by remedy: most reach 500; hiding a fifth of z and short dreams do not." tags=["run", "extra"]
plt.figure(figsize=(9, 3.4))
for height, dots in enumerate(remedy_means.values()):
    plt.plot(dots, [height] * len(dots), "o", color=BLUE)
plt.yticks(range(len(remedy_means)), list(remedy_means), fontsize=10)
plt.gca().set(xlabel="mean real return of four episodes (steps)", xlim=(0, 510), title="The remedies, each alone: one dot per search")
plt.gca().invert_yaxis()
plt.show()

# %% [markdown]
# Nothing beats the first row, so a row can only show what it costs. Free here are the norm penalty and noise, and, with four episodes per search, even an M without practice and a C without worth for the last state: both stay within 0.13 m of the centre. What hurts is **hiding a fifth of z** (107 and 112 steps) and **shorter dreams** (148 and 102; in 15 steps too little goes wrong). **Dreams that begin where dreams ended** (500 and 408) and **the verifier's weights** (284 and 500) make it a matter of luck. Ha & Schmidhuber needed τ = 1.15, in a game whose M left gaps to cheat in. Two searches of a third of the length, in one world: read the large differences, and only those.
#
# (This table is not of the run whose outputs you see: it comes from a pass over the stages of an earlier run with the same seed and settings, with `WM_OVERRIDES="evaluate.remedy_seeds=2"`. `quick` draws it from the file.)
#
# ### Real data again
#
# The recipe lets the controller gather new real data from time to time, so that dream and reality do not part. One **round**: C plays some episodes, with a tenth of its pushes left to a coin; M practises on all data, with half of its windows from the new episodes (a weight in the memory); C is trained anew in the new dreams. This run does not need it, so here it is shown once, and what ships is the C from before. **Predict:** what can M learn from episodes in which nothing goes wrong?

# %% alt="Open-loop errors of angle and position before and after a round of real data: lower after it." tags=["run", "extra"]
round_stage, own_episodes = recorded(
    Agent(world, controller(ship), 0.1, settings.seed),
    after=(c_stage,),
    purpose="round",
    episodes=settings.round.episodes,
    seed=settings.seed,
    workers=settings.collect.workers,
)
own_codes = keep(encode_memory, Memory(own_episodes, settings.v.max_shift, DEVICE), v, after=(round_stage, v_stage), name="round-codes", **code_settings)
round_memory = Memory([*random_episodes, *own_episodes], settings.v.max_shift, DEVICE, own=len(own_episodes))
round_codes = Codes(*(torch.cat([old, own_codes.result[name].to(DEVICE)], 1) for name, old in codes._asdict().items()))
round_practice = settings.practice.but(steps=settings.round.steps)
round_m_stage = keep(train_m, round_memory, round_codes, practice_stage.result["weights"], after=(practice_stage, own_codes), name="round-m",
                     m=settings.m, practice=round_practice, seed=settings.seed + 1)  # fmt: skip
round_world = World(v, frozen(M(settings.v.latents, settings.m.hidden), round_m_stage.result), round_memory, round_codes, settings.m.context)
round_c_stage = keep(try_remedy, round_world, after=(round_m_stage,), name="round-c", c=short_c, **(remedy_settings | {"seeds": 1}))
round_good = good_world._replace(m=round_world.m)
show_open_loop({"M before, seen": after_practice["M, seen"], "M after the round, seen": open_loop_errors(round_good, wide_probe),
                "M before, from z": after_practice["M, from z"], "M after the round, from z": open_loop_errors(round_good, wide_probe, seen=False)}, "A round of real data, good play")  # fmt: skip
round_lines = round_c_stage.result["lines"]
print(
    f"{sum(len(episode.actions) for episode in own_episodes):,} real steps gathered and trained on; C, trained anew: {round_lines[0]['real_mean']:.0f} real steps, the cart stays within {round_lines[0]['farthest']:.2f} m"
)

# %% [markdown]
# The eight episodes, 4,000 real steps, take a quarter off M's error on good play: 1.80° and 11 mm after thirty steps, instead of 2.37° and 13 mm. That is what M learns where nothing goes wrong: how a pole moves that stands. Random play mostly shows how it falls. C, trained anew, plays 500 steps again, and its cart stays within 0.07 m.
#
# ### Many runs
#
# One run is an anecdote. `tests/experiments.py` executes this very notebook with other seeds and settings, and writes one line per run to `assets/experiments/`, the failed runs included. What follows is drawn from there.


# %% tags=["define", "extra"]
def show_seeds(experiment: str) -> None:
    """Each test episode of each run of an experiment, in words and as a picture; a sentence, where its table is not at hand."""
    lines = read_table(experiment)
    if not lines:
        return
    returns = {int(line["seed"]): np.array(line["returns"].split(), float) for line in lines}
    for line in lines:
        print(f"seed {line['seed']:>3s}: {line['status']}, mean {line['real_mean'] or '–':>6s}, worst episode {line['real_worst'] or '–':>5s}")
    plt.figure(figsize=(9, 3))
    for place, values in enumerate(returns.values()):
        plt.plot(place + np.linspace(-0.3, 0.3, len(values)), values, "o", color=BLUE, ms=3, alpha=0.4)
        plt.plot([place - 0.35, place + 0.35], [np.mean(values) if len(values) else np.nan] * 2, color=ORANGE, ls="-")
    plt.axhline(475, color=RED, lw=1, ls="--")
    plt.xticks(range(len(returns)), list(returns))
    plt.gca().set(xlabel="seed", ylabel="return (steps; red: 475)", ylim=(0, 515), title=f"{experiment}: each test episode (dots), mean (bars)")
    plt.show()
    means = sorted(float(line["real_mean"] or 0) for line in lines)
    print(f"{experiment}: {sum(mean >= 475 for mean in means)} of {len(means)} seeds reach 475; median {np.median(means):.1f}, lowest {means[0]:.1f}")


# %% tags=["run", "extra"]
show_seeds("main_line_quick")

# %% [markdown]
# With this main line no other seed has been run to the test yet. Until then, the 500 above are one run, with a rule that was fixed before it.
#
# <details><summary><b>Exercise 8.</b> Left alone, a small error of the angle becomes e ≈ 2.7 times as large in a quarter of a second. Suppose M is off by 0.1° after its first step. After how many steps without looking is it off by 3°, if nothing else goes wrong? (Solution)</summary>
#
# A factor of 30 is e to the power of ln 30 = 3.4, so it takes 3.4 quarters of a second, 0.85 s, or 43 steps of 20 ms. So physics sets a limit to the length of a dream, and a better M moves it only slowly: ten times less error buys 29 more steps.
# </details>

# %% [markdown]
# ## 10 · The engineer's road: quantise, guard, serve
#
# V, M and C are trained. Suppose a robot shall use them: it sends its pictures over a network, and gets a push back. What can be made smaller? What if the camera lies? How many robots can two cores serve?
#
# `ROADS` says which of the last parts are computed now. The others are drawn from `assets/experiments/`, where our own pass over them left its tables.

# %% cellView="form" tags=["run", "extra"]
# @title Which roads are computed now? (auto: all in smoke, else none)
import importlib.util

ROADS = os.environ.get("WM_ROADS", "auto")  # @param ["auto", "none", "engineer", "student", "researcher", "frontier", "words", "all"] {allow-input: true}
roads = {"engineer", "student", "researcher", "frontier", "words"}
tiny = profile_name(PROFILE) == "smoke"  # each road in miniature
asked = {"auto": "all" if tiny else "", "none": ""}.get(ROADS, ROADS)
live = roads if asked == "all" else set(asked.replace(",", " ").split())
if live - roads:
    raise ValueError(f"ROADS = {ROADS!r}: choose auto, none, all, or from {', '.join(sorted(roads))}")
road_needs = {name: name.replace("_", "-") for name in "fastapi uvicorn httpx prometheus_client itsdangerous".split()}
road_missing = [package for name, package in road_needs.items() if importlib.util.find_spec(name) is None]
if road_missing and subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *road_missing]).returncode:
    raise SystemExit(f"pip could not install {', '.join(road_missing)}: do it in a terminal, then run this cell again.")
print(f"computed now: {', '.join(sorted(live)) or 'nothing'}; missing libraries: {', '.join(road_missing) or 'none'}")

# %% [markdown]
# ### INT8: a quarter of the bytes
#
# A weight in 8 bits instead of 32: each linear layer gets one scale, and its weights become integers from −127 to 127. *Dynamic* quantisation does the same to what flows in, batch by batch, so it needs no calibration data. It covers linear layers. M's gates are one; V's convolutions stay float. (PyTorch has announced that this function will go; the library `torchao` takes its place.) **Predict:** M moves 64 latents a little in each of 30 steps. Will the rounding errors add up?

# %% tags=["define", "extra"]
import pandas


def table_of(experiment: str, lines: list[dict]) -> pandas.DataFrame:
    """Lines that were computed now, which are kept beside the run; or, if there are none, those of our own pass."""
    if lines:
        write_table(OUT / f"{experiment}.csv", lines)
    elif not read_table(experiment):
        return pandas.DataFrame()
    return pandas.read_csv((OUT if lines else Path("assets") / "experiments") / f"{experiment}.csv")


def quantised(module: nn.Module) -> nn.Module:
    """A copy whose linear layers compute in INT8; the module itself, and a sentence, on a GPU, or where PyTorch can't any more."""
    quantise = getattr(torch.ao.quantization, "quantize_dynamic", None)
    if quantise is None or DEVICE.type != "cpu":
        print("dynamic INT8 needs a CPU, and a PyTorch that still has quantize_dynamic: served in float")
        return module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is announced to go
        return quantise(module, {nn.Linear}, dtype=torch.qint8)  # makes a copy


def milliseconds(work: Callable[[], Any], times: int = 30) -> float:
    """The median time of some calls on one thread, after one to warm up."""
    taken = []
    with threads(1):
        for _ in range(times + 1):
            begin = time.perf_counter()
            work()
            taken.append(1000 * (time.perf_counter() - begin))
    return float(np.median(taken[1:]))


def try_int8(
    progress: Progress, worlds: dict[str, World], weights: Tensor, good_episodes: list[Episode], probe: Probe, *, seed: int, episodes: int, workers: int
) -> dict:
    """Each world's size, time to see and to dream for 1 and for 32 robots, error and KL after 30 steps alone, and real return."""
    lines, stacks = [], torch.rand(32, STACK, FRAME_SIZE, FRAME_SIZE, device=DEVICE)
    for name, its in worlds.items():
        looks = its.looking_at(good_episodes)
        torch.save([its.v.state_dict(), its.m.state_dict()], file := io.BytesIO())
        line = {"weights": name, "megabytes": file.tell() / 1e6}
        for robots in (1, 32):
            z = its.v.encode(stacks[:robots])[0]  # (B, Z)
            line[f"V, {robots} robots (ms)"] = milliseconds(functools.partial(its.v.encode, stacks[:robots]))
            line[f"M, {robots} robots (ms)"] = milliseconds(functools.partial(its.m.step, its.m.begin(z), z[:, 0]))
        error, kl = open_loop_errors(looks, probe)[29], open_loop_kl(looks, 30)[29]
        line |= {"θ at 30 (degrees)": math.degrees(error[2]), "x at 30 (mm)": 1000 * float(error[0]), "KL at 30 (nats)": float(kl)}
        line["real return"] = float(np.mean(lives(Agent(its, controller(weights)), "roads", seed, episodes, workers)))
        lines.append({name: value if name == "weights" else round(value, 3) for name, value in line.items()})
    return {"lines": lines}


# %% tags=["run", "extra"]
int8_world = world._replace(v=quantised(world.v), m=quantised(world.m))
int8_inputs = ({"float32": world, "INT8": int8_world}, ship, good_episodes, wide_probe)
int8_settings = {"seed": settings.seed, "episodes": settings.evaluate.episodes, "workers": settings.collect.workers}
int8_stage = keep(try_int8, *int8_inputs, after=(c_stage, good_stage), name="int8", **int8_settings) if "engineer" in live else None
table_of("engineer_int8", int8_stage.result["lines"] if int8_stage else []).T

# %% [markdown]
# They do add up. After thirty steps alone the angle is off by 2.99° instead of 2.37° and the belief by 109 nats instead of 100. C doesn't mind: 500 in each of 100 episodes, with both, for it never goes thirty steps without looking. The weights shrink to two fifths, not to a quarter, because V's convolutions stay as they are. And time? One robot is answered no sooner: packing numbers into bytes costs what it saves. For 32 robots M needs two thirds of the time, but V, which is most of the work, as much as before.
#
# ### A service that remembers nothing
#
# Two servers shall be able to share the work, and either may die. So neither may keep anything about a robot. What M needs of the past travels with the robot itself, in a **token**: the service hands it out with each push, and gets it back with the next pictures. The robot could change it; a signature shows if it did (an HMAC with a key that only the servers know). A token also carries its time, and is good for one minute and one C.

# %% tags=["define", "extra"]
import base64
import secrets

from itsdangerous import BadSignature, TimestampSigner
from safetensors.torch import load as tensors_of

MAX_AGE = 60  # seconds for which a token is good


class Past(NamedTuple):
    """What the service must know of the past of B robots."""

    z: Tensor  # (B, C, Z) what V saw in the last pictures
    a: Tensor  # (B, C) the pushes after them
    known: Tensor  # (B, C) False: before the robot's first picture, or before a jump
    alone: Tensor  # (B, 2Z + 2H + 1) M's state after the last push, where it dreams on if the next pictures are not believed
    quiet: Tensor  # (B,) steps since the guard last found something odd
    still: Tensor  # (B,) steps for which the picture has not changed


def begun(world: World) -> Past:
    """The past of a robot that has just begun, without the batch dimension."""
    c, z, h = world.context, world.m.change.out_features, world.m.hidden
    count = torch.zeros((), dtype=torch.uint8)
    return Past(torch.zeros(c, z), torch.zeros(c), torch.zeros(c, dtype=torch.bool), torch.zeros(2 * z + 2 * h + 1), count, count)


class Seal:
    """Turns pasts into signed text, and back. Whoever has the key can make it."""

    def __init__(self, key: bytes, weights: Tensor) -> None:
        """`key`: the servers' secret. `weights`: the C for which a token is good."""
        self.signer = TimestampSigner(key, hashlib.sha256(weights.cpu().numpy().tobytes()).digest(), digest_method=hashlib.sha256)

    def close(self, past: Past) -> list[str]:
        """One token per robot. Floats are kept in 16 bits."""
        parts = {name: (part.half() if part.is_floating_point() else part).cpu() for name, part in past._asdict().items()}
        bodies = (bytes_of({name: part[k] for name, part in parts.items()}) for k in range(len(past.z)))
        return [self.signer.sign(base64.b64encode(body)).decode() for body in bodies]

    def open(self, token: str) -> Past:
        """What is in a token, without the batch dimension. BadSignature: forged, of another key or C, or too old; the message says which."""
        parts = tensors_of(base64.b64decode(self.signer.unsign(token, MAX_AGE)))
        return Past(*(parts[name].float() if parts[name].is_floating_point() else parts[name] for name in Past._fields))


# %% [markdown]
# ### The guard
#
# A camera can lie: noise, a dead picture, another robot's pictures. V would code them as it codes everything, and C would act on that. But M has an expectation. Before each push the guard asks three questions. **Did M expect this?** The squared distance between the code that V sees and the one that M foresaw, in units of M's own doubt, is about 1 per latent for an honest camera. **Does what follows look real?** The guard dreams three steps under the chosen push, before it is executed, and asks the verifier of part 9. **Does anything move?**
#
# If an answer is bad, the robot gets what it asked for: a refusal, or a push from M's *dream*, which goes on from the last believed picture as if the eyes were shut. After a jump M reads the pictures as a new film, and when nothing has been odd for three steps, the guard believes it again. **Predict:** which lie will it never catch?

# %% tags=["define", "extra"]
AHEAD = 3  # steps that the guard dreams before a push is executed
CALM = 3  # steps without anything odd after which pictures are believed again


class Limits(NamedTuple):
    """Beyond these the guard doubts."""

    surprise: float = math.inf
    confidence: float = 0.0
    still: float = math.inf


class Driver:
    """V, M, C, the verifier and the guard as one function of pictures and pasts."""

    def __init__(self, world: World, weights: Tensor, verifier: Verifier, limits: Limits | None = None) -> None:
        """`weights` (Z + H + 1,): C. `limits`: without them it believes everything."""
        self.world, self.weights, self.verifier, self.limits = world._replace(memory=None, codes=None), weights, verifier, limits or Limits()

    @torch.no_grad()
    def __call__(self, frames: Tensor, past: Past, guarded: Tensor) -> tuple[Tensor, Past, dict[str, Tensor]]:
        """Pushes (B,), the new pasts, and (B,) each: `believed`, `surprise`, `confidence`, `still`.

        `frames` (B, 4, 64, 64) uint8, oldest first; `guarded` (B,): where False, all is believed."""
        m, seen = self.world.m, self.world.v.encode(frames.float() / 255)[0]  # (B, Z)
        new = ~past.known[:, -1]  # (B,) a robot's first pictures: there is nothing to compare them with
        z = torch.cat([torch.where(new[:, None, None], seen[:, None], past.z), seen[:, None]], 1)  # (B, C + 1, Z)
        now = remembered(m, z, past.a, past.known)
        foreseen = now._replace(z=now.before + m.change(now.h), blind=now.blind + 1)
        surprise = ((seen - foreseen.z).square() / m.says(foreseen).log_var.exp()).mean(1)  # (B,)
        follows = dream(m, now, controller(self.weights), AHEAD)
        confidence = torch.stack([self.verifier(step.state) for step in follows]).amin(0).sigmoid()  # (B,)
        same = (frames[:, -1] == frames[:, -2]).flatten(1).all(1) & ~new  # (B,)
        still = torch.where(same, past.still.clamp(max=254) + 1, 0).to(torch.uint8)  # (B,)
        ask = guarded & ~new  # (B,)
        jump = ask & (surprise > self.limits.surprise)
        odd = jump | ask & ((confidence < self.limits.confidence) | (still > self.limits.still))
        quiet = torch.where(odd, 0, torch.where(new, CALM, past.quiet.clamp(max=254) + 1)).to(torch.uint8)  # (B,)
        believed = ~guarded | (quiet >= CALM)
        sizes = [part.shape[1] for part in now]
        state = State(*(torch.where(believed[:, None], *both) for both in zip(now, m.step(State(*past.alone.split(sizes, 1)), past.a[:, -1]))))
        push = act(self.weights[None], features(state)[None])[0]  # (B,)
        a, known = (torch.cat([old[:, 1:], last[:, None]], 1) for old, last in ((past.a, push), (past.known & ~jump[:, None], torch.ones_like(new))))
        return (
            push,
            Past(z[:, 1:], a, known, torch.cat(state, 1), quiet, still),
            {"believed": believed, "surprise": surprise, "confidence": confidence, "still": still},
        )


# %% [markdown]
# ### HTTP
#
# The service is a FastAPI app. `POST /act` takes four pictures (raw grey values in base64) and a token. What a request may be stands in one class, and what breaks it is answered with a 4xx and a sentence. Requests that arrive while others are computed are answered **together**, as one batch, because one product with a matrix for 32 robots is much cheaper than 32 products. `GET /metrics` counts in the format of Prometheus, and `/docs` shows it all.

# %% tags=["define", "extra"]
import asyncio
import gc
from typing import Literal

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from pydantic import Base64Bytes, field_validator

PICTURES = STACK * FRAME_SIZE**2  # bytes of four pictures
LETTERS = (PICTURES + 2) // 3 * 4  # the same in base64
MOST = 64  # requests in one batch
LARGEST = 64_000  # bytes of a request's body


class Ask(BaseModel):
    """What a robot sends."""

    model_config = ConfigDict(extra="forbid")
    frames: Base64Bytes = Field(min_length=LETTERS, max_length=LETTERS, description="four grey pictures of 64 × 64 bytes, oldest first, in base64")
    token: str = Field("", max_length=20_000, description="from the last answer; empty at a robot's beginning")
    in_doubt: Literal["dream", "refuse", "believe"] = Field("dream", description="what to do when the guard does not believe the pictures")

    @field_validator("frames")
    @classmethod
    def whole(cls, frames: bytes) -> bytes:
        """Letters that are no base64 are skipped in decoding: then bytes are missing."""
        if len(frames) != PICTURES:
            raise ValueError(f"these are {len(frames):,} bytes, not {PICTURES:,}")
        return frames


class Answer(BaseModel):
    """What it gets back."""

    push: int | None = Field(description="0: left, 1: right; null: refused")
    token: str = Field(description="to be sent with the next pictures")
    believed: bool = Field(description="does the guard believe the pictures?")
    surprise: float = Field(description="how far they are from what M foresaw; about 1 or less is well")
    confidence: float = Field(description="the verifier's, in what follows from them")
    still: int = Field(description="steps for which the picture has not changed")


class Together:
    """Answers what arrives at the same time as one batch: while one batch is computed, the next one gathers."""

    def __init__(self, work: Callable[[list], list]) -> None:
        """`work`: computes many at once."""
        self.work, self.waiting, self.task = work, [], None

    async def __call__(self, item: Any) -> Any:
        """The result for one item; whatever error `work` raises."""
        self.waiting.append((item, future := asyncio.get_running_loop().create_future()))
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self.run())
        return await future

    async def run(self) -> None:
        """Work until nobody waits."""
        while self.waiting:
            batch, self.waiting = self.waiting[:MOST], self.waiting[MOST:]
            try:
                results = await asyncio.to_thread(self.work, [item for item, _ in batch])
            except Exception as error:  # whoever waits must hear of it
                results = [error] * len(batch)
            for (_, future), result in zip(batch, results):
                if not future.done():  # its robot may have hung up
                    future.set_exception(result) if isinstance(result, Exception) else future.set_result(result)


# %% tags=["define", "extra"]
def make_app(driver: Driver, key: bytes) -> FastAPI:
    """The service. `key` signs the tokens: all replicas need the same."""
    torch.set_num_threads(1)  # one core per replica
    gc.freeze()  # else Python's collector looks through all that was imported once a second, and all robots wait
    app, seal, first, registry = FastAPI(title="A world model at the wheel"), Seal(key, driver.weights), begun(driver.world), CollectorRegistry()
    count, size = (
        Counter("pushes", "answers", ["verdict"], registry=registry),
        Histogram("batch", "requests in a batch", buckets=(1, 4, 16, 64), registry=registry),
    )
    seconds = Histogram("seconds", "to compute a batch", registry=registry)

    def answers(asked: list[tuple[Ask, Past]]) -> list[Answer]:
        """A batch of answers."""
        size.observe(len(asked))
        with seconds.time():
            frames = torch.frombuffer(bytearray(b"".join(ask.frames for ask, _ in asked)), dtype=torch.uint8).view(-1, STACK, FRAME_SIZE, FRAME_SIZE)
            past = Past(*(torch.stack(parts).to(DEVICE) for parts in zip(*(past for _, past in asked))))
            guarded = torch.tensor([ask.in_doubt != "believe" for ask, _ in asked], device=DEVICE)
            push, after, found = driver(frames.to(DEVICE), past, guarded)
        lines = [dict(zip(found, values)) for values in zip(*(part.tolist() for part in found.values()))]
        refused = [ask.in_doubt == "refuse" and not line["believed"] for (ask, _), line in zip(asked, lines)]
        return [Answer(push=None if no else a, token=token, **line) for no, a, token, line in zip(refused, push.tolist(), seal.close(after), lines)]

    together = Together(answers)

    @app.middleware("http")
    async def short(request: Request, go_on: Callable) -> Response:
        """Only bodies that say their length, and are not too long, are read."""
        length = request.headers.get("content-length", "")
        if request.method != "POST" or length.isdigit() and int(length) <= LARGEST:
            return await go_on(request)
        return JSONResponse({"detail": f"a body of at most {LARGEST:,} bytes, and its length in the header, please"}, 413 if length else 411)

    @app.exception_handler(RequestValidationError)
    async def explain(request: Request, error: RequestValidationError) -> JSONResponse:
        """What is wrong, without repeating what was sent: that may be long, or no JSON at all."""
        return JSONResponse({"detail": [{"at": [str(place)[:50] for place in one["loc"]], "problem": one["msg"]} for one in error.errors()]}, 422)

    @app.post("/act", responses={401: {"description": "bad token"}, 411: {"description": "no length"}, 413: {"description": "too long"}})
    async def push_for(ask: Ask) -> Answer:
        """One push for one robot."""
        try:
            past = seal.open(ask.token) if ask.token else first
        except BadSignature as error:
            raise HTTPException(401, f"bad token: {error}; begin anew without one") from error
        answer = await together((ask, past))
        count.labels("refused" if answer.push is None else "believed" if answer.believed else "doubted").inc()
        return answer

    @app.get("/healthz")
    async def alive() -> dict[str, str]:
        """Is the service there?"""
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> Response:
        """What happened so far, in this replica."""
        return Response(generate_latest(registry), media_type="text/plain")

    return app


# %% [markdown]
# ### Two ways to serve, one client
#
# `uvicorn` serves an app in one process; two of them can share a socket, and the kernel gives each new connection to one of them. **Ray Serve** does more: it starts replicas by load, watches them, replaces those that die, and spreads single requests. The app is the same. On two A10 GPUs each replica would take one (`num_gpus=1`), and nothing else would change.
#
# The client is a policy like any other, so `play` runs it: the real CartPole on one side, the service on the other, HTTP between them.

# %% tags=["define", "extra"]
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import cloudpickle
import httpx


def forget_namespaces() -> None:
    """Make this notebook's pydantic classes ready to travel: with an older IPython, Colab's, each keeps the whole namespace it was made in."""
    waiting: list[type] = [BaseModel]
    while waiting:
        kinds = waiting.pop().__subclasses__()
        waiting += kinds
        for kind in kinds:
            if kind.__module__ == __name__:
                kind.__pydantic_parent_namespace__ = None


@contextlib.contextmanager
def served(driver: Driver, key: bytes, replicas: int = 1) -> Iterator[tuple[str, Callable[[], list]]]:
    """uvicorn, one process per replica, all on one socket: its address, and a function that lists the processes. They end with the block. TimeoutError: none answers."""

    def serve(handle: int) -> None:
        """What a replica does until it is told to stop."""
        import uvicorn

        uvicorn.run(make_app(driver, key), fd=handle, log_level="error", access_log=False)

    forget_namespaces()
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener, tempfile.TemporaryDirectory() as folder:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # uvicorn takes a given socket for no TCP, and small answers would wait 40 ms
        work = Path(folder) / "serve.pkl"
        work.write_bytes(cloudpickle.dumps(serve))  # a new process knows nothing of this notebook: the function travels with all that it needs
        call = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))(int(sys.argv[2]))"
        command = [sys.executable, "-W", "ignore", "-c", call, str(work), str(listener.fileno())]
        processes = [subprocess.Popen(command, pass_fds=[listener.fileno()]) for _ in range(replicas)]
        try:
            yield healthy(f"http://127.0.0.1:{listener.getsockname()[1]}"), lambda: processes
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(20)


@contextlib.contextmanager
def served_by_ray(driver: Driver, key: bytes, replicas: int = 2) -> Iterator[tuple[str, Callable[[], list]]]:
    """Ray Serve, with one to `replicas` replicas, as the load asks for: its address, and a function that lists their processes. They end with the block."""
    import psutil
    import ray
    from ray import serve

    forget_namespaces()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False, logging_level="error")
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        scale = {"min_replicas": 1, "max_replicas": replicas, "target_ongoing_requests": 16, "upscale_delay_s": 2}
        deployment = serve.deployment(autoscaling_config=scale, max_ongoing_requests=200, ray_actor_options={"num_cpus": 1})
        serve.run(deployment(serve.ingress(lambda: make_app(driver, key))(type("Service", (), {}))).bind())
        yield healthy(f"http://127.0.0.1:{port}"), lambda: [process for process in psutil.process_iter(["name"]) if "ServeReplica" in process.info["name"]]
    finally:
        serve.shutdown()
        ray.shutdown()


def healthy(address: str, seconds: float = 60) -> str:
    """Wait until a service answers; its address. TimeoutError: it doesn't."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(address + "/healthz").is_success:
                return address
        time.sleep(0.1)
    raise TimeoutError(f"no service at {address} after {seconds:.0f} s")


class Remote:
    """A policy that lives behind an address. It sends four frames and a token, and gets a push and the next token."""

    def __init__(self, address: str, in_doubt: str = "dream", lie: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda stacks, steps: stacks) -> None:
        """`lie`: what becomes of the stacks (W, 4, 64, 64) of robots that are `steps` (W,) old, on their way."""
        self.client, self.in_doubt, self.lie, self.stack, self.answers = httpx.Client(base_url=address, timeout=60), in_doubt, lie, None, []

    def ask(self, stack: np.ndarray, token: str) -> dict:
        """One robot's request."""
        body = {"frames": base64.b64encode(stack.tobytes()).decode(), "token": token, "in_doubt": self.in_doubt}
        return self.client.post("/act", json=body).raise_for_status().json()

    def __call__(self, fresh: np.ndarray, frames: np.ndarray, states: np.ndarray, seeds: list) -> np.ndarray:
        """One push per environment, (W,); where the service refuses, a push to the left. The true states are not used."""
        if self.stack is None:
            self.stack, self.steps, self.tokens = np.repeat(frames[:, None], STACK, 1), np.zeros(len(frames), int), [""] * len(frames)
        self.stack = np.where(fresh[:, None, None, None], frames[:, None], np.concatenate([self.stack[:, 1:], frames[:, None]], 1))  # (W, 4, 64, 64)
        self.steps = np.where(fresh, 0, self.steps + 1)
        tokens = ["" if new else token for new, token in zip(fresh, self.tokens)]
        with ThreadPoolExecutor(len(frames)) as pool:
            answers = list(pool.map(self.ask, self.lie(self.stack, self.steps), tokens))
        self.tokens = [answer.pop("token") for answer in answers]
        self.answers += [{"seed": seed, "step": int(step)} | answer for seed, step, answer in zip(seeds, self.steps, answers)]
        return np.array([answer["push"] or 0 for answer in answers])


# %% [markdown]
# ### Cameras that lie
#
# In 10 of each 100 steps the camera lies, in one of five ways: strong noise; a picture that stays; another robot's pictures; the four pictures in the wrong order; all black. Robots drive with the guard, and without. The limits are set beforehand on honest episodes of their own, so that each of the three questions doubts one in 200 of all stretches of ten steps. How often is a lie caught within its ten steps, and how often does the guard cry wolf in ten honest ones? **Predict** which lie does no harm.

# %% tags=["define", "extra"]
LIES = ("none", "noise", "frozen", "another robot's", "backwards", "black")
LIE_FROM, LIE_FOR, LIE_EVERY = 60, 10, 100  # steps


class Lies:
    """A camera that lies now and then: it shows other stacks (W, 4, 64, 64) than the true ones."""

    def __init__(self, kind: str) -> None:
        """`kind`: one of LIES."""
        self.kind, self.luck, self.last = LIES.index(kind), np.random.default_rng(0), None

    def __call__(self, stacks: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """`steps` (W,): how old the robots are."""
        age = (steps % LIE_EVERY - LIE_FROM)[:, None, None, None]  # (W, 1, 1, 1) of the lie
        lying = (age >= 0) & (age < LIE_FOR) & (self.kind > 0)
        self.last = stacks[:, -1:] if self.last is None else np.where(lying, self.last, stacks[:, -1:])  # (W, 1, 64, 64) the last honest picture
        noisy = np.clip(stacks + self.luck.normal(0, 80, stacks.shape), 0, 255).astype(np.uint8)
        frozen = np.where(np.arange(STACK)[:, None, None] < STACK - 1 - age, stacks, self.last)  # the last one stays, the older ones are still true
        return np.where(lying, (stacks, noisy, frozen, np.roll(stacks, 1, 0), stacks[:, ::-1], np.zeros_like(stacks))[self.kind], stacks)


def stretches(answers: list[dict]) -> dict[tuple[int, int], list[dict]]:
    """Answers by episode and ten steps: (seed, number of the stretch) -> its ten answers; without the first ten steps and without what is cut off."""
    found: dict[tuple[int, int], list[dict]] = {}
    for answer in answers:
        found.setdefault((answer["seed"], answer["step"] // 10), []).append(answer)
    return {(seed, tenth): ten for (seed, tenth), ten in found.items() if tenth > 0 and len(ten) == 10}


def limits_of(answers: list[dict], doubted: float = 0.005) -> Limits:
    """The limits which each doubt that share of honest stretches of ten steps; without any such stretch: none."""
    ends = [
        (max(one["surprise"] for one in ten), min(one["confidence"] for one in ten), max(one["still"] for one in ten)) for ten in stretches(answers).values()
    ]
    if not ends:
        return Limits()
    surprise, confidence, still = np.array(ends).T
    return Limits(float(np.quantile(surprise, 1 - doubted)), float(np.quantile(confidence, doubted)), float(np.quantile(still, 1 - doubted)))


def try_guard(progress: Progress, driver: Driver, *, seed: int, episodes: int, steps: int) -> dict:
    """The service as robots meet it, whose cameras lie: returns with and without the guard, alarms, and `limits`."""
    key, lines = secrets.token_bytes(32), []

    def drive(address: str, purpose_seed: int, in_doubt: str, kind: str = "none") -> tuple[float, list[dict]]:
        """Mean return of some episodes, and all answers."""
        robots = Remote(address, in_doubt, Lies(kind))
        played = play(robots, seeds_for("roads", purpose_seed, episodes), episodes, steps=steps)
        return float(np.mean([len(episode.actions) for episode in played])), robots.answers

    with served(driver, key) as (address, _):
        limits = limits_of(drive(address, seed + 1, "believe")[1])
    with served(Driver(driver.world, driver.weights, driver.verifier, limits), key) as (address, _):
        for kind in LIES:
            without, _ = drive(address, seed + 3, "believe", kind)
            guarded, answers = drive(address, seed + 3, "dream", kind)
            doubts = {place: not all(one["believed"] for one in ten) for place, ten in stretches(answers).items()}
            during = [doubt for (_, tenth), doubt in doubts.items() if 10 * tenth % LIE_EVERY == LIE_FROM]
            before = [doubt for (_, tenth), doubt in doubts.items() if kind == "none" or 10 * tenth < LIE_FROM]  # honest ones
            caught, wolf = (round(float(np.mean(values)), 3) if values else math.nan for values in (during, before))
            lines.append({"camera": kind, "return without guard": without, "return with guard": guarded, "caught": caught, "cried wolf": wolf})
    return {"lines": lines, "limits": list(limits)}


# %% tags=["run", "extra"]
steered = Driver(int8_world, ship, quantised(verifier))
guard_settings = {"seed": settings.seed, "episodes": 2 if tiny else 20, "steps": 80 if tiny else 500}
guard_stage = keep(try_guard, steered, after=(c_stage, verifier_stage), name="guard", **guard_settings) if "engineer" in live else None
guard_table = table_of("engineer_guard", guard_stage.result["lines"] if guard_stage else [])
guard_table

# %% alt="Steps survived with and without the guard, by the kind of disturbance." tags=["run", "extra"]
if len(guard_table):
    plt.figure(figsize=(9, 3.2))
    for guard_shift, guard_how, guard_look in ((-0.2, "without guard", {"color": ORANGE, "hatch": "//"}), (0.2, "with guard", {"color": BLUE})):
        guard_heights = guard_table[f"return {guard_how}"]
        plt.bar(np.arange(len(guard_table)) + guard_shift, guard_heights, 0.38, label=guard_how, edgecolor="white", **guard_look)
    plt.xticks(range(len(guard_table)), guard_table["camera"])
    plt.gca().set(xlabel="what the camera shows in 10 of each 100 steps", ylabel="return (steps)", title="What a lying camera costs, over HTTP", ylim=(0, 600))
    plt.legend(ncols=2, loc="upper center")
    plt.show()

# %% [markdown]
# Without the guard, noise ends an episode after 201 steps on average, another robot's pictures after 269, black ones after 69. The guard catches every one of these lies within its ten steps, and frozen pictures, too; with it noise and black cost nothing. **Backwards** passes (4 % caught) and does no harm: a slow pole looks much the same in both directions of time.
#
# Two rows show its limits. A **frozen** camera is harmless for this C (500), and the guard makes it worse (402): M's dream is a worse driver than an old picture. And **another robot's** pictures cost much, with the guard (338) as without it. Each of them is possible, and so is their sequence. Of two consistent films, no rule that sees only pictures can tell which one is true.
#
# An honest camera is doubted in 0.8 % of its stretches of ten steps, and the robot loses nothing by it. (In the other rows the last column counts the honest stretches before the first lie. There it is 4 to 6 %: a pole that still swings surprises more, and the limits come from whole episodes.)
#
# ### Load
#
# `python tests/load.py` made this table, with the checkpoint. Each client asks again as soon as it has its answer, like a robot with a recorded film. All of it shares two cores: the clients, the replicas, and what Ray Serve puts between them. In the last lines one of two replicas is killed in the middle; a request that fails is sent again, with the same token. **Predict:** do two replicas answer twice as many requests here?

# %% tags=["run", "extra"]
load_table = table_of("engineer_load", [])
load_table

# %% alt="Latency and pushes a second of the service against the number of robots." tags=["run", "extra"]
load_axes = {"xlabel": "clients", "xscale": "log", "yscale": "log", "xticks": [1, 8, 32, 128], "xticklabels": ["1", "8", "32", "128"]}
load_panels = [load_axes | {"lines": {}, "ylabel": what} for what in ("p99 (ms)", "per second")]
load_groups = load_table[load_table["killed"] == 0].groupby(["server", "replicas"]) if len(load_table) else []
for (load_server, load_replicas), load_rows in load_groups:
    for load_panel in load_panels:
        load_line = (load_rows["clients"], load_rows[load_panel["ylabel"]], "o-" if load_server == "uvicorn" else "s--")
        load_panel["lines"][f"{load_server}, replicas: {load_replicas}"] = load_line
if len(load_table):
    plot(*load_panels, title="Clients and service on the same two cores")

# %% [markdown]
# One replica answers 32 robots with 408 pushes a second, 99 % of them within 107 ms; two answer 483, within 90 ms. That is not twice as much: the clients need a core, too, and there are only two. Ray Serve is slower here, 147 to 163 a second and 354 to 334 ms. The app is the same, so the difference, some 245 ms, is Ray Serve's own: its proxy and its router are processes beside ours, on the same two cores. When a replica is killed, 27 requests (uvicorn) and 12 (Ray Serve) have to be sent again; everything else goes on.
#
# <details><summary><b>Exercise 9.</b> A robot needs 50 pushes a second. How many robots would one core hold, if V and M were all that costs? How many does it hold? Would two A10 GPUs help? (Solution)</summary>
#
# For a batch of 32, V takes 1.6 ms, and M 20 steps of 0.22 ms (sixteen to remember, three ahead, one with its eyes shut): 5.9 ms, or some 5,400 pushes a second, for 108 robots. Measured were 408 a second, enough for 8. So of 2.45 ms per push only 0.18 are V and M; the rest is HTTP, base64, JSON, tokens, and the clients. Two replicas with a GPU each, and with no more processor than here, would save just that: computed, not measured, 2 · 1000 / 2.27, or 880 pushes a second, for 17 robots. What helps is more cores.
# </details>

# %% [markdown]
# ## 11 · The student's road: PPO, and gradients, in the dream
#
# C is linear, and CMA-ES only ever sees one number per candidate: its return. A dream knows more. It can say after each push how things stand, and, unlike reality, it is a formula, so it can be *differentiated*. Is CMA-ES on a linear C the best use of a dream? Three learners, one world: the same V and M, the same moments to begin in, dreams of 30 steps.
#
# Two of them train a small network, one hidden layer of 128 tanh units on (z, h), each number brought to mean 0 and deviation 1. Its score says right if it is positive, as C's does.


# %% tags=["define", "extra"]
class Net(nn.Module):
    """A score for each state: from (z, h) along some axes, through a layer of tanh units, or straight."""

    def __init__(self, axes: Axes, hidden: int, pushes: int = 1) -> None:
        """`axes`: what it reads, K numbers. `hidden`: units; with 0 it is linear. `pushes`: scores, one for each push of a step. All begin at 0."""
        super().__init__()
        self.register_buffer("mean", axes.mean)
        self.register_buffer("directions", axes.directions)
        count = axes.directions.shape[1]
        self.body = nn.Sequential(nn.Linear(count, hidden), nn.Tanh()) if hidden else nn.Identity()
        self.out = nn.Linear(hidden or count, pushes)
        for part in self.out.parameters():
            nn.init.zeros_(part)

    def forward(self, state: State) -> Tensor:
        """(B, …) for states (B, …); (B, …, P) if a step has P pushes."""
        score = self.out(self.body((features(state) - self.mean) @ self.directions))  # (B, …, P)
        return score[..., 0] if score.shape[-1] == 1 else score


def plain_axes(read: Tensor) -> Axes:
    """(z, h) as it is, each number with mean 0 and deviation 1 over some features (S, Z + H)."""
    return Axes(read.mean(0), (1 / (read.std(0) + 1e-3)).diag())


def sure(net: nn.Module) -> Choose:
    """A network that acts: right where its score is above 0."""
    return lambda k, state: (net(state) > 0).float()


# %% [markdown]
# ### One rollout for all
#
# A dream does not end with a bang. At step $k$ it goes on with the probability $d_k = 1 - p_{\text{done},k}$, so what is to come counts $d_k$ times:
#
# $$A_k = d_k\,\bigl(\hat r_k + \gamma\,(v_{k+1} + \lambda A_{k+1})\bigr) - v_k$$
#
# This is the *generalised advantage* (Schulman et al., 2016) with soft ends: how much better a push did than $v_k$ had promised. Put all $v_k$ to 0 except that of the last state, and $\lambda = \gamma = 1$, and it is nothing but C's imagined return. One function serves both learners.


# %% tags=["define", "extra"]
def advantages(reward: Tensor, on: Tensor, value: Tensor, gamma: float = 1.0, lam: float = 1.0) -> Tensor:
    """A (B, T) of the equation above. `reward`, `on` (B, T): r̂ and the probability to go on; `value` (B, T + 1): of the states before each push and after the last."""
    ahead, found = torch.zeros_like(value[:, 0]), []
    for k in reversed(range(reward.shape[1])):
        ahead = on[:, k] * (reward[:, k] + gamma * (value[:, k + 1] + lam * ahead)) - value[:, k]
        found.append(ahead)
    return torch.stack(found[::-1], 1)


class School:
    """Where C's dreams begin, and what they pay, for anyone who acts on states."""

    def __init__(self, world: World, c: CSettings, seed: int, agent: Callable[[World, Choose], Policy] = Agent) -> None:
        """As `learn` does it. `agent`: makes someone who acts awake of someone who acts in dreams."""
        luck = torch.Generator().manual_seed(seed)
        self.world, self.c, self.seed, self.agent, self.looking = world, c, seed, agent, 0.0
        self.starts = world.states(*world.moments(START_POOL, luck))
        self.read = features(world.states(*world.moments(START_POOL, luck, copies=1)))  # (S, Z + H)
        self.home, self.lawful = principal_axes(self.read, min(HOME_AXES, self.read.shape[1])), search_space(world, c, luck)

    def some(self, luck: torch.Generator, count: int) -> State:
        """Random moments to begin in."""
        return self.starts.pick(torch.randint(len(self.starts.z), (count,), generator=luck).to(self.starts.z.device))

    def lived(self, choose: Choose, begin: State, horizon: int) -> tuple[State, Tensor, Tensor, Tensor]:
        """B dreams: the states before each push and after the last (B, T + 1, …), the pushes, r̂, and the probabilities to go on, (B, T) each."""
        path = stacked(list(dream(self.world.m, begin, choose, horizon)))
        says = self.world.m.says(path.state)
        return State(*(torch.cat([a[:, None], b], 1) for a, b in zip(begin, path.state))), path.a, says.reward, torch.sigmoid(-says.done)

    def returns(self, choose: Choose, begin: State, horizon: int = 0) -> Tensor:
        """C's imagined return (B,)."""
        states, _, r, on = self.lived(choose, begin, horizon or self.c.horizon)
        worth = self.c.last_worth * familiarity(features(State(*(part[:, -1] for part in states))), self.home, self.c.penalty)  # (B,)
        return advantages(r, on, torch.cat([torch.zeros_like(r), worth[:, None]], 1))[:, 0]

    def net(self, hidden: int, lawful: bool) -> Net:
        """An untrained network, on plain (z, h) or on the axes of the search."""
        return Net(self.lawful if lawful else plain_axes(self.read), hidden, self.world.codes.actions[0, 0].numel())

    @torch.no_grad()
    def dreamed(self, choose: Choose) -> Tensor:
        """The mean return in 512 dreams, the same for all."""
        return self.returns(choose, self.some(torch.Generator().manual_seed(self.seed), 512)).mean()

    def look(self, choose: Choose, workers: int, episodes: int = 2) -> dict[str, Tensor]:
        """A thermometer, as C's: the return in dreams, and that of some short real episodes. Its seconds are not counted as training."""
        begin = time.perf_counter()
        real = np.mean(lives(self.agent(self.world, choose), "check", self.seed, episodes, workers, LOOK_STEPS))
        found = {"dream": self.dreamed(choose), "real": torch.tensor(real)}
        self.looking += time.perf_counter() - begin
        return found


# %% [markdown]
# ### PPO
#
# The student is an actor-critic. The actor pushes *by chance*, right with the probability σ(score). A second network, the critic, learns what a state is worth; after the 30 steps it also says what comes then, so the handmade worth of C's last state is not needed. The actor makes pushes with $A_k > 0$ likelier, but **clips** the ratio of the new to the old probability, so that it does not run far from what was dreamed:
#
# $$L = -\min\bigl(\rho_k A_k,\ \text{clip}(\rho_k, 1 - \epsilon, 1 + \epsilon)\,A_k\bigr) + \tfrac12 (v_k - \hat v_k)^2 - \beta\,\text{entropy}$$
#
# The entropy keeps it trying. It dreams 256 lives side by side, learns from them for ten steps, and dreams again.

# %% tags=["define", "extra"]
GATHER, MOMENTS = 10, 1024  # steps of PPO before it dreams again; dreamed moments in each
CLIP, ENTROPY, GAMMA, LAMBDA = 0.2, 0.01, 0.98, 0.95  # ε, β, γ, λ
FAR = 30.0  # the critic's unit, in steps: networks like numbers near 1


def ppo_losses(score: Tensor, value: Tensor, seen: dict[str, Tensor]) -> dict[str, Tensor]:
    """PPO's losses on S dreamed moments (Schulman et al., 2017, equations 7 and 9), each weighed by the chance that the dreamer was still alive.

    `score`, `value` (S,): the networks' now. `seen`, (S,) each: `a`, its `log_p` when it was dreamed, `advantage`, `target` of the critic, `alive`."""
    ratio = (F.logsigmoid((2 * seen["a"] - 1) * score) - seen["log_p"]).exp()
    gain = torch.minimum(ratio * seen["advantage"], ratio.clamp(1 - CLIP, 1 + CLIP) * seen["advantage"])
    p = score.sigmoid()
    parts = {"policy": -gain, "value": (value - seen["target"]).square(), "entropy": F.binary_cross_entropy(p, p, reduction="none")}
    means = {name: (part * seen["alive"]).sum() / seen["alive"].sum() for name, part in parts.items()}
    return {"total": means["policy"] + 0.5 * means["value"] - ENTROPY * means["entropy"], **means}


@torch.no_grad()
def gathered(school: School, nets: nn.ModuleDict, luck: torch.Generator, count: int) -> dict[str, Any]:
    """Dream `count` lives, and keep what PPO learns from: `state`, and the rest of `seen`, moment by moment."""

    def by_chance(k: int, state: State) -> Tensor:
        """Pushes (B,), right with the probability σ(score)."""
        return (torch.rand(count, generator=luck).to(state.z.device) < nets["actor"](state).sigmoid()).float()

    states, a, r, on = school.lived(by_chance, school.some(luck, count), school.c.horizon)
    before, value = State(*(part[:, :-1] for part in states)), nets["critic"](states)  # (B, T, …), (B, T + 1)
    advantage = advantages(r / FAR, on, value, GAMMA, LAMBDA)  # (B, T)
    seen = {"a": a, "log_p": F.logsigmoid((2 * a - 1) * nets["actor"](before)), "target": advantage + value[:, :-1]}
    seen["advantage"] = (advantage - advantage.mean()) / (advantage.std() + 1e-6)
    seen["alive"] = torch.cat([torch.ones_like(on[:, :1]), on[:, :-1].cumprod(1)], 1)  # (B, T)
    return {name: part.flatten() for name, part in seen.items()} | {"state": State(*(part.flatten(0, 1) for part in before))}


# %% [markdown]
# ### The gradient of the dream itself
#
# M is differentiable, and so are r̂, $p_{\text{done}}$ and the worth of the last state. Only the push is not: it is left or right. The **straight-through** trick pushes hard, and pretends for the gradient that the push were the number σ(score / ½) (Bengio et al., 2013). Then the return of a dream has a gradient with respect to every weight of the controller, through all 30 steps of M. No candidates, no critic, no chance: Adam climbs the return.
#
# **Predict:** a gradient through 30 steps of an LSTM, at a pole that falls exponentially. Will it explode, or vanish?


# %% tags=["define", "extra"]
def straight_through(net: nn.Module, width: float = 0.5) -> Choose:
    """As sure as `sure`, with the gradient of σ(score / width)."""

    def choose(k: int, state: State) -> Tensor:
        """Pushes (B,) in {0, 1}."""
        soft = (net(state) / width).sigmoid()
        return (soft > 0.5).float() + soft - soft.detach()

    return choose


REACH = (5, 15, 30, 60)  # steps for which the gradient is measured


def gradient_norms(school: School, net: nn.Module) -> list[float]:
    """The length of the gradient of 256 dreams' mean return with respect to the weights, for each of REACH."""
    begin = school.some(torch.Generator().manual_seed(school.seed), 256)
    found = [torch.autograd.grad(school.returns(straight_through(net), begin, horizon).mean(), list(net.parameters())) for horizon in REACH]
    return [math.sqrt(sum(float(part.square().sum()) for part in parts)) for parts in found]


def train_student(progress: Progress, school: School, *, way: str, hidden: int, lawful: bool, how: TrainSettings, seed: int, workers: int) -> dict:
    """Train a network in dreams: by "PPO", or by the "gradient" of the dream. `lawful`: it reads the axes in which CMA-ES searches, else plain (z, h).

    Returns the `log` of `fit`, the `actor`'s weights, `seconds` without looks, and the `norms` of the gradient, before and after."""
    torch.manual_seed(seed)
    nets = nn.ModuleDict({"actor": school.net(hidden, lawful)} | ({"critic": school.net(hidden, False)} if way == "PPO" else {})).to(DEVICE)
    actor, seen, norms, begin = nets["actor"], {}, [gradient_norms(school, nets["actor"])], time.perf_counter()

    def batch_loss(luck: torch.Generator, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one step, and now and then a look."""
        if way == "PPO":
            if step % GATHER == 0 or not seen:
                seen.update(gathered(school, nets, luck, how.batch))
            pick = torch.randint(how.batch * school.c.horizon, (MOMENTS,), generator=luck).to(DEVICE)
            state = seen["state"].pick(pick)
            losses = ppo_losses(actor(state), nets["critic"](state), {name: part[pick] for name, part in seen.items() if name != "state"})
        else:
            losses = {"total": -school.returns(straight_through(actor), school.some(luck, how.batch)).mean()}
        return losses["total"], losses | (school.look(sure(actor), workers) if step % LOG_EVERY == 0 or step == how.steps - 1 else {})

    log = fit(nets, batch_loss, how, seed, progress, way, 1.0)["log"]
    seconds = time.perf_counter() - begin - school.looking
    return {"log": log, "actor": {"weights": actor.state_dict()}, "seconds": seconds, "norms": [*norms, gradient_norms(school, actor)]}


# %% [markdown]
# ### Who uses the dream best?
#
# Each learner has three seeds and is tested in 100 real episodes. CMA-ES appears twice: with all its dreams, and with no more than PPO has. Two rows ask what the gradient needs: it climbs without the axes that CMA-ES is searched in, and without the worth of the last state. **Predict** the order, in dreamed steps.


# %% tags=["define", "extra"]
def try_student(
    progress: Progress,
    world: World,
    *,
    learner: str,
    way: str,
    hidden: int,
    lawful: bool,
    how: TrainSettings,
    c: CSettings,
    seed: int,
    episodes: int,
    workers: int,
) -> dict:
    """One learner, one seed: a `line` for the table, and lines for its `curve` (dreamed steps, dream and real return of each look) and `norms` (of gradients)."""
    school, who, norms = School(world, c, seed), {"learner": learner, "seed": seed}, []
    if way == "CMA-ES":
        begin = time.perf_counter()
        found = learn(None, world, c=c, seed=seed, workers=workers)
        seconds, per_step, choose = time.perf_counter() - begin, c.population * c.rollouts * c.horizon, controller(found["weights"].to(DEVICE))
        steps = sorted({min(2**k, c.generations) for k in range(12)})
        looks = [school.look(controller(found["path"][step - 1].to(DEVICE)), workers) for step in steps]
    else:
        found = train_student(progress, school, way=way, hidden=hidden, lawful=lawful, how=how, seed=seed, workers=workers)
        seconds, per_step, choose = (
            found["seconds"],
            how.batch * c.horizon / (GATHER if way == "PPO" else 1),
            sure(frozen(school.net(hidden, lawful), found["actor"])),
        )
        steps, looks = found["log"]["step"], [{"dream": dreamed, "real": real} for dreamed, real in zip(found["log"]["dream"], found["log"]["real"])]
        norms = [who | {"when": when, "horizon": k, "norm": x} for when, row in zip(("before", "after"), found["norms"]) for k, x in zip(REACH, row)]
    curve = [who | {"steps": int(step * per_step), "dream": float(look["dream"]), "real": float(look["real"])} for step, look in zip(steps, looks)]
    played = play(Agent(world, choose), seeds_for("roads", seed, episodes), workers)
    real, far = [len(episode.actions) for episode in played], max(float(np.abs(episode.states[:, 0]).max()) for episode in played)
    line = who | {
        "dreamed steps": int((steps[-1] + (way != "CMA-ES")) * per_step),
        "seconds": round(seconds, 1),
        "dream": round(float(school.dreamed(choose)), 2),
    }
    return {"line": line | {"real": float(np.mean(real)), "worst": min(real), "farthest (m)": round(far, 2)}, "curve": curve, "norms": norms}


# %% tags=["run", "extra"]
by_gradient = {
    "way": "gradient",
    "hidden": 128,
    "lawful": False,
    "how": TrainSettings(learning_rate=1e-2, batch=64, steps=20 if tiny else 150),
    "c": settings.c,
}
by_ppo = by_gradient | {"way": "PPO", "how": TrainSettings(learning_rate=1e-3, batch=8 if tiny else 256, steps=20 if tiny else 600)}
learners = {
    "CMA-ES": by_gradient | {"way": "CMA-ES", "lawful": True},
    "CMA-ES, fewer dreams": by_gradient | {"way": "CMA-ES", "lawful": True, "c": settings.c.but(generations=min(16, settings.c.generations))},
    "PPO": by_ppo,
    "gradient": by_gradient,
    "gradient, linear C": by_gradient | {"hidden": 0},
    "gradient, linear C, its axes": by_gradient | {"hidden": 0, "lawful": True},
    "gradient, last state worth 0": by_gradient | {"c": settings.c.but(last_worth=0.0)},
}
student_settings = {"episodes": settings.evaluate.episodes, "workers": settings.collect.workers}
taught = [
    keep(try_student, world, after=(c_stage,), name=f"student-{k}", **how, seed=settings.seed + luck, **({"learner": learner} | student_settings)).result
    for k, (learner, how) in enumerate(learners.items() if "student" in live else ())
    for luck in range(1 if tiny else 3)
]
student_table = table_of("student", [one["line"] for one in taught])
student_curves = table_of("student_curves", [line for one in taught for line in one["curve"]])
student_norms = table_of("student_gradients", [line for one in taught for line in one["norms"]])
student_table

# %% alt="The return in dreams and in reality of CMA-ES, PPO and the gradient against dreamed steps: the gradient needs the fewest." tags=["run", "extra"]
if len(student_curves):
    student_figure, student_places = plt.subplots(1, 2, figsize=(10.4, 3.6))
    for student_look, student_name in zip(("o-", "s--", "^-.", "d:"), ("CMA-ES", "PPO", "gradient", "gradient, linear C")):
        student_rows = student_curves[(student_curves["learner"] == student_name) & (student_curves["steps"] > 0)].groupby("steps")
        for student_place, student_what in zip(student_places, ("dream", "real")):
            student_band = student_rows[student_what].agg(["min", "mean", "max"])
            student_place.plot(student_band.index, student_band["mean"], student_look, label=student_name)
            student_place.fill_between(student_band.index, student_band["min"], student_band["max"], alpha=0.2)
    student_places[0].set(xscale="log", xlabel="dreamed steps", ylabel="return", title="In dreams of 30 steps")
    student_places[1].set(xscale="log", xlabel="dreamed steps", ylabel="return (steps)", title=f"In reality, looks of {LOOK_STEPS} steps")
    student_places[1].legend()
    plt.show()

# %% alt="The size of the dream's gradient against the horizon, before and after training." tags=["run", "extra"]
norm_axes = {"xlabel": "horizon (steps)", "ylabel": "length of the gradient", "yscale": "log", "xticks": REACH}
norm_panels = {
    "gradient": norm_axes | {"title": "128 units", "lines": {}},
    "gradient, linear C, its axes": norm_axes | {"title": "linear, in its axes", "lines": {}},
}
for norm_learner, norm_panel in norm_panels.items() if len(student_norms) else ():
    for norm_when, norm_look in (("before", "o--"), ("after", "s-")):
        norm_rows = student_norms[(student_norms["learner"] == norm_learner) & (student_norms["when"] == norm_when)].groupby("horizon")["norm"].mean()
        norm_panel["lines"][f"{norm_when} training"] = (norm_rows.index, norm_rows, norm_look)
if len(student_norms):
    plot(*norm_panels.values(), title="The gradient of a dream's return, mean of three seeds")

# %% [markdown]
# All three learn it, and C's way is the dearest. The **gradient** needs a tenth of CMA-ES's dreamed steps (288,000 instead of 2.88 million) and a third of its time, 8 or 9 seconds instead of 24 to 26. At its first look after the start, 96,000 dreamed steps, its network stands through all 200 steps with each seed; PPO does from 115,000 on, CMA-ES from 461,000 (right figure). **PPO** ends at 500 in all 300 test episodes too, in 11 to 14 seconds. With no more dreams than PPO has, CMA-ES falls now and then: one of its three seeds has a mean of 441 and a worst episode of 103.
#
# What does the gradient need? Not the axes: a linear C on plain (z, h) reaches 500 with every seed. With the axes of the search it does no better (499, and carts that stray 0.48 m instead of 0.20). CMA-ES must be told where to look, since it learns one number per candidate; a gradient knows in which of 256 directions to go. But it does need the **worth of the last state**. Without it the three seeds have 483, 381 and 460, and the cart drifts half a metre: thirty steps don't show that a cart is on its way out.
#
# It neither explodes nor vanishes (figure). For an untrained network the gradient's length is 2 to 3.4 at any horizon, since the pole falls before a long one matters. After training it is 0.3 in dreams of 5 steps, about 2 at 15 and at 30, and 8 at 60; for the linear C in its axes (right) it climbs to 27. What a weight does early grows with the pole's own instability, and longer dreams will need more care. At 30 steps it is no trouble.
#
# Who exploits the dream? The gradient pushes its own score highest: up to 31.2 in the dream, where CMA-ES has 28.8 to 30.1 and PPO, which never sees the worth, 27.9 to 29.5. Reality pays all of them 500, and CMA-ES's cart stays nearest to the centre (0.14 m, against 0.20 and 0.37). So the last point of dream return bought nothing real. It did no harm either, in this world and with these three seeds.
#
# So is CMA-ES the best use of a dream? Not here. It asks nothing of M but numbers, and would also work if M could not be differentiated. Where it can, the dream's own gradient is the better teacher. (The learning rates and γ were tried out in this very world, with these seeds and with real returns on other episodes than the table's.)
#
# <details><summary><b>Exercise 10.</b> A gradient also needs a way back through the dream. How much more does one of its dreamed steps cost than one of CMA-ES's, and when would CMA-ES be faster? (Solution)</summary>
#
# CMA-ES: 25 s for 2.88 million steps, 8.7 µs each. The gradient: 8.6 s for 288,000, 30 µs each, 3.4 times as much. There is the way back, and its 64 dreams at a time use the processor less well than CMA-ES's 960. So CMA-ES would be faster as soon as it needed fewer than 3.4 times as many dreams. Here it needs ten times as many.
# </details>

# %% [markdown]
# ## 12 · The researcher's road: does a contrast keep a dream true?
#
# A dream drifts. Here is one idea to hold it: M is only ever told what *does* follow, never what does not. A **contrastive** loss says both: the dream under the true pushes shall lie nearer to what was seen than dreams under other pushes. The hypothesis: an M that practises with this loss drifts half as far after a hundred steps, in degrees or in millimetres, and tells good controllers from bad ones better.
#
# ### The loss
#
# From one moment M dreams three times: under the recorded pushes, with all of them reversed, and with every second one reversed. At each step what was seen, $z$, picks the dream that is its own (InfoNCE, van den Oord et al., 2018):
#
# $$L = -\log \frac{e^{-d_0 / T}}{\sum_n e^{-d_n / T}}, \qquad d_n = \frac1Z \sum_i \frac{(\hat z^{(n)}_i - z_i)^2}{\sigma^2}$$
#
# The positive is the dream under the true pushes ($n = 0$), the negatives are the other two, σ is that of the loss of M's mean (0.135), and $T = 0.1$. The loss is added to those of M's practice, on every fourth sequence (the other dreams cost time), with a weight of 1 or of 10. Nothing else changes: the same start, the same number of steps, the same seeds. T and the weight 10 were set by the size of the terms, before anything was measured; the weight 1 was added when we had seen what 10 does.

# %% tags=["define", "extra"]
TEMPERATURE = 0.1  # T


def other_pushes(a: Tensor, read: int) -> Tensor:
    """(3, B, T): the pushes a (B, T) themselves, then all reversed, then every second one, from the last step that M reads."""
    alone = torch.arange(a.shape[1], device=a.device) - (read - 1)  # (T,) counts the steps alone
    return torch.stack([a, torch.where(alone >= 0, 1 - a, a), torch.where((alone >= 0) & (alone % 2 == 0), 1 - a, a)])


def info_nce(imagined: Tensor, z: Tensor) -> Tensor:
    """The loss of each step, (B, T), in nats: dreams (N, B, T, Z), of which the first is the true one, before what was seen, z (B, T, Z)."""
    nearness = -(imagined - z).square().mean(-1) / SPREAD**2 / TEMPERATURE  # (N, B, T)
    return nearness.logsumexp(0) - nearness[0]


def contrast(m: M, z: Tensor, a: Tensor, real: Tensor, read: int, weight: float = 1.0) -> Tensor:
    """What `train_m` adds to its loss, from every fourth of its sequences: z (B, T + 1, Z), a and real (B, T)."""
    z, a, real = z[::4], a[::4], real[::4]
    pushes = other_pushes(a, read)  # (3, B, T)
    shown = z[:, :read].repeat(len(pushes), 1, 1)  # (3B, R, Z)
    lived = stacked([step.state.z for step in dream(m, m.begin(shown[:, 0]), given(pushes.flatten(0, 1)), a.shape[1], shown)])  # (3B, T, Z)
    alone = real[:, read - 1 :]  # (B, K)
    loss = info_nce(lived.view(len(pushes), *z[:, 1:].shape)[:, :, read - 1 :], z[:, read:])  # (B, K)
    return weight * (loss * alone).sum() / alone.sum().clamp(min=1)


def strong_contrast(m: M, z: Tensor, a: Tensor, real: Tensor, read: int) -> Tensor:
    """The same with ten times the weight: a function with a name, so that the stage's key can tell the two apart."""
    return contrast(m, z, a, real, read, 10.0)


# %% [markdown]
# ### Two questions
#
# **How far does it drift?** As in part 9: degrees, millimetres, KL, and, new, the verifier's loss: −log of its confidence in what M dreams. (A verifier reads M's $h$, so each M has one of its own, trained as in part 9.)
#
# **Does it rank controllers?** Who chooses by dreams needs only the right order. Each M breeds thirty controllers of different skill, from the path of a search in its own dreams, two thirds of them with noise on top (a controller reads M's $h$, so another M's would not do). They play eight real episodes each. Then M dreams their lives for 30, 60 and 100 steps, from 256 calm moments (the pole within 4° and slower than 0.5 rad/s), and we compare the order of the imagined returns with the real one: Spearman's correlation, with a bootstrap interval over the thirty. Last, each imagined reward is weighed by the verifier's confidence. So each M, with and without a contrast, is tried with and without these weights.
#
# Three seeds each: M's teacher forcing, its practice and its verifier are trained anew; V and the data stay.

# %% tags=["define", "extra"]
RANKED, LONG = 30, (30, 60, 100)  # controllers; horizons in steps


def rank_controllers(progress: Progress, world: World, verifier: Verifier, *, c: CSettings, seed: int, episodes: int, starts: int, workers: int) -> dict:
    """Controllers of all skills in reality and in dreams: a line for each, with its mean `real` return, and its imagined ones, `plain` and `weighed`, for each of LONG.

    They come from the path of a search in this very world, each third with noise of 0, 0.3 and 1 times its own size. `starts`: moments in which their dreams begin."""
    path, luck = learn(None, world, c=c, seed=seed, workers=workers)["path"], torch.Generator().manual_seed(seed)  # (G, Z + H + 1)
    when = (len(path) ** torch.linspace(0, 1, RANKED) - 1).long().clamp(max=len(path) - 1)  # early generations differ most
    size = torch.tensor([0.0, 0.3, 1.0]).repeat(RANKED)[:RANKED, None] * path[when].norm(dim=1, keepdim=True)
    noise = F.normalize(torch.randn(RANKED, path.shape[1], generator=luck), dim=1)
    weights = (path[when] + size * noise).to(DEVICE)
    lines = [{"real": float(np.mean(lives(Agent(world, controller(one)), "roads", seed, episodes, workers)))} for one in weights]
    begins = world.states(calm_moments(world, seed, starts))
    home = principal_axes(features(begins), 1)  # counts for nothing: no last state is given a worth
    for name, pays in {"plain": reward, "weighed": trusted(verifier)}.items():
        for steps in LONG:
            returns = dream_returns(world.m, weights, begins, home, c.but(horizon=steps, last_worth=0.0), pays=pays).mean(1)  # (RANKED,)
            for line, value in zip(lines, returns.tolist()):
                line[f"{name} {steps}"] = round(value, 4)
    return {"lines": lines}


def calm_moments(world: World, seed: int, count: int) -> Tensor:
    """Rows (at most `count`,) in which a good controller can survive: the pole within 4° and slower than 0.5 rad/s."""
    rows, _ = world.moments(START_POOL, torch.Generator().manual_seed(seed), copies=1)
    theta, speed = world.memory.states[rows][:, 2:].abs().unbind(1)
    return rows[(theta < math.radians(4)) & (speed < 0.5)][:count]


def rank_interval(a: Any, b: Any) -> tuple[float, float, float]:
    """Spearman's correlation, and its 95 % bootstrap interval over the pairs."""
    luck, both = np.random.default_rng(0), np.array([a, b])
    drawn = [correlations(*both[:, luck.integers(len(a), size=len(a))])[1] for _ in range(500)]
    return (correlations(*both)[1], *map(float, np.nanquantile(drawn, (0.025, 0.975))))


# %% tags=["define", "extra"]
def verifier_loss(world: World, verifier: Verifier, rows: Tensor) -> Tensor:
    """Mean −log confidence (nats) in M's states after each of the steps alone, (T,), on windows as in `drift`; nan without windows."""
    return -F.logsigmoid(verifier(open_loop(world, rows)[1])).mean(0)


def drift_lines(world: World, probe: Probe, verifier: Verifier, rows: Tensor, frames: int = 1) -> list[dict]:
    """`drift` and `verifier_loss` as lines of a table, by frames without looking; `frames`: of one step."""
    found = drift(world, probe, rows) | {"verifier": verifier_loss(world, verifier, rows)}
    return [{"frames": frames * (k + 1)} | {what: round(float(values[k]), 3) for what, values in found.items()} for k in range(len(found["theta"]))]


def judge_m(progress: Progress, good: World, fresh: World, probe: Probe, verifier: Verifier, *, longest: int) -> dict:
    """How far one M drifts on good and on random play, as `lines`. `longest`: stretch alone on random play."""
    plays = {"good play": (good, 100), "random play": (fresh, longest)}
    return {"lines": [{"play": name} | line for name, (its, horizon) in plays.items()
                      for line in drift_lines(its, probe, verifier, windows(its.memory, its.context + horizon, 300))]}  # fmt: skip


# %% tags=["define", "extra"]
DRIFTS = {"theta": "|error| of θ (degrees)", "x": "|error| of x (mm)", "kl": "KL (nats)", "verifier": "verifier's loss (nats)"}


def show_bands(table: pandas.DataFrame, by: str, x: str, panels: dict[Any, str], title: str, **how: Any) -> None:
    """One panel for each column of a table (column -> label): its mean over the seeds, and from the least to the greatest, for each kind in the column `by`. `how`: for `Axes.set`."""
    figure, places = plt.subplots(1, len(panels), figsize=(3.4 * len(panels), 3.2), squeeze=False)
    for place, (column, label) in zip(places[0], panels.items()):
        for style, (kind, rows) in zip(("-", "--", "-.", ":"), table.groupby(by)):
            band = rows.groupby(x)[column].agg(["min", "mean", "max"])
            place.plot(band.index, band["mean"], style, label=kind)
            place.fill_between(band.index, band["min"], band["max"], alpha=0.2)
        place.set(**{"xlabel": x, "ylabel": label} | how)
    places[0][0].legend()
    figure.suptitle(title)
    plt.show()


def difference(first: Any, other: Any) -> tuple[float, float, float, float]:
    """The mean of other − first, pair by pair, its 95 % interval, and the p of Student's paired test; nan for fewer than two pairs."""
    if len(first) < 2:
        return (float(np.mean(other) - np.mean(first)), *[math.nan] * 3)
    test = stats.ttest_rel(other, first)
    return (float(np.mean(other) - np.mean(first)), *map(float, test.confidence_interval()), float(test.pvalue))


def paired(table: pandas.DataFrame, by: str, column: str, first: str) -> pandas.Series:
    """In words, for each kind in the column `by`: the mean over the seeds, and, seed by seed, its difference to the kind `first`."""
    values, texts = table.pivot(index="seed", columns=by, values=column), {}
    for kind, other in values.items():
        far, low, high, p = difference(values[first], other)
        texts[kind] = f"{other.mean():.3g}" + (f": {far:+.3g} ({low:.3g} to {high:.3g}), p = {p:.3f}" if kind != first else "")
    return pandas.Series(texts)


# %% tags=["run", "extra"]
forced_stages, plain_stages = [m_stage], [practice_stage]
if live & {"researcher", "frontier"}:
    for again_luck in () if tiny else (1, 2):
        again = {"m": settings.m, "seed": settings.seed + again_luck}
        forced_stages.append(keep(train_m, memory, codes, after=(code_stage,), name="m-again", **again))
        again_weights = forced_stages[-1].result["weights"]
        again_stage = keep(train_m, memory, codes, again_weights, after=(forced_stages[-1],), name="practice-again", practice=settings.practice, **again)
        plain_stages.append(again_stage)

# %% tags=["run", "extra"]
contrast_lines, ranking_lines = [], []
if "researcher" in live:
    ranked_settings = {"c": settings.c, "episodes": 1 if tiny else 8, "starts": 8 if tiny else 256, "workers": settings.collect.workers}
    for arm_luck, (arm_forced, arm_plain) in enumerate(zip(forced_stages, plain_stages)):
        arm_seed = {"seed": settings.seed + arm_luck}
        arm_stages = {"baseline": arm_plain}
        for arm_name, arm_loss in {"contrast, weight 1": contrast, "contrast, weight 10": strong_contrast}.items():
            arm_stages[arm_name] = keep(train_m, memory, codes, arm_forced.result["weights"], arm_loss, after=(arm_forced,), name="contrastive",
                                        m=settings.m, practice=settings.practice, **arm_seed)  # fmt: skip
        for arm_name, arm_stage in arm_stages.items():
            arm_worlds = [its._replace(m=frozen(M(settings.v.latents, settings.m.hidden), arm_stage.result)) for its in (world, good_world, fresh_world)]
            arm_door = keep(train_verifier, arm_worlds[0], after=(arm_stage,), name="verifier-again", verifier=settings.verifier, **arm_seed)
            arm_verifier, arm_who = frozen(Verifier(settings.v.latents, settings.m.hidden), arm_door.result), {"arm": arm_name} | arm_seed
            judged_stage = keep(
                judge_m, *arm_worlds[1:], wide_probe, arm_verifier, after=(arm_door, good_stage, fresh_stage), name="judged", longest=longest_alone
            )
            ranked_stage = keep(rank_controllers, arm_worlds[0], arm_verifier, after=(arm_door,), name="ranked", **ranked_settings, **arm_seed)
            contrast_lines += [arm_who | line for line in judged_stage.result["lines"]]
            ranking_lines += [arm_who | {"controller": number} | line for number, line in enumerate(ranked_stage.result["lines"])]
contrast_drift = table_of("researcher_drift", contrast_lines)
contrast_ranking = table_of("researcher_ranking", ranking_lines)

# %% alt="Drift of three kinds of M, without a contrast and with two weights of it: angle, position, KL and the verifier's loss against frames alone." tags=["run", "extra"]
for drift_play, drift_rows in contrast_drift.groupby("play") if len(contrast_drift) else ():
    show_bands(drift_rows, "arm", "frames", DRIFTS, f"Drift, {drift_play}: mean and range of the seeds", yscale="log", xlabel="frames alone")
    drift_last = drift_rows[drift_rows["frames"].isin((10, 30, 60, drift_rows["frames"].max()))]
    print(f"{drift_play}: means, and differences to the baseline, seed by seed, with 95 % intervals")
    display(pandas.DataFrame({(what, k): paired(rows, "arm", what, "baseline") for what in DRIFTS for k, rows in drift_last.groupby("frames")}).T)

# %% tags=["run", "extra"]
if len(contrast_ranking):
    rank_lines = []
    for (rank_arm, rank_seed), rank_rows in contrast_ranking.groupby(["arm", "seed"]):
        for rank_kind, rank_steps in ((kind, steps) for kind in ("plain", "weighed") for steps in LONG):
            rank_found = dict(zip(("Spearman", "low", "high"), rank_interval(rank_rows[f"{rank_kind} {rank_steps}"], rank_rows["real"])))
            rank_lines.append({"arm": rank_arm + (", weighed" if rank_kind == "weighed" else ""), "seed": rank_seed, "steps": rank_steps} | rank_found)
    rank_table = pandas.DataFrame(rank_lines)
    display(contrast_ranking.groupby(["arm", "seed"])["real"].describe()[["min", "25%", "50%", "75%", "max"]].round(0))
    display(rank_table.pivot(index=["arm", "seed"], columns="steps", values=["Spearman", "low", "high"]).round(2))
    print("means, and differences to the baseline, seed by seed, with 95 % intervals")
    display(pandas.DataFrame({steps: paired(rows, "arm", "Spearman", "baseline") for steps, rows in rank_table.groupby("steps")}))

# %% [markdown]
# **The hypothesis is not borne out.** With weight 10 the contrast harms. After ten frames of good play the angle is off by 0.85° instead of 0.49° and the position by 11.7 mm instead of 4.8; after 40 frames of random play it is 7.0° and 109 mm instead of 5.3° and 30 mm. After ten frames the KL is two to three times as large. One number looks like a success: after 60 frames of good play the angle is off by 2.7° only, where the baseline has lost the pole (10.7°). Don't believe it. Our reading, not measured: on good play next to nothing happens, so whoever dreams of an upright pole, whatever is pushed, is right there by accident (the copied frame of part 5). The cart is four times as far off as the baseline's at that moment.
#
# With weight 1 nothing can be told apart from the baseline: of the 28 angles, positions, KLs and verifier's losses in the two tables one has p below 0.05, the angle after 100 frames (4.9° instead of 6.7°). Among 28, one or two do by luck alone. After a hundred frames, where the hypothesis speaks, weight 1 has 4.9° instead of 6.7° and 633 mm instead of 752, weight 10 has 6.7° and 805 mm: no half. (The verifier's loss falls with weight 10, from 2.0 to 0.8 nats after 100 frames, but p = 0.11, and before it is several times as large. It judges looks only.)
#
# **The ranking**, too, is no better. The baseline's dreams order their controllers nearly as life does: 0.94 at 30 steps, 0.97 at 60 and 100, on average over the seeds. So dreams that lose the pole within 1.2 seconds still know who is better. With weight 1 it is the same (0.95, 0.96, 0.97). With weight 10 there is hardly anybody to rank: the best of thirty lives 28, 83 and 457 real steps, by seed, where each of the other six Ms breeds one that reaches 500. And their order at 30 steps is right with one seed (0.93), poor with another (0.42) and turned round with the third (−0.58, among controllers that all fall at once). The verifier's weights help no good M: at 30 steps the baseline has 0.88 with them instead of 0.94 (p = 0.06), at 100 steps it makes no difference. At 30 steps they do help the two bad Ms (−0.58 becomes 0.63, 0.42 becomes 0.73); at 100 the first is at −0.13 again.
#
# Why does a strong contrast harm? Our guess, not measured: nobody ever saw what would have followed the other pushes. The loss only asks that those dreams lie *elsewhere*, and where that is nobody says.
#
# <details><summary><b>Exercise 11.</b> How large is L if M ignores the pushes? And how hard does L with weight 10 pull the true dream towards z, compared with the loss of M's mean, ½ Σ (ẑ − z)² / σ²? (Solution)</summary>
#
# All three dreams are the same then, so each gets the probability ⅓: L = ln 3 = 1.10 nats. The gradient of L with respect to one ẑ⁽⁰⁾ᵢ is (1 − p₀) · 2 (ẑᵢ − zᵢ) / (Z σ² T), where p₀ is the probability of the true dream; that of the other loss is (ẑᵢ − zᵢ) / σ². With Z = 64 and T = 0.1 the ratio is 0.31 (1 − p₀), times the weight 10: 3.1 (1 − p₀). In our code it is more: L is a mean over the steps alone (some 21 of 32), M's loss one over all steps, which makes 4.8 (1 − p₀). So the contrast pulls harder as long as it gives the wrong dreams more than a fifth, and not at all where it is sure.
# </details>

# %% [markdown]
# ## 13 · The frontier: do macro-actions let a dream look further?
#
# A dream drifts by the *step*. So let a step be longer: two pushes become one action, and M jumps two frames at once. There are four such **macro-actions**: left-left, left-right, right-left, right-right. A dream of fifty steps is then two seconds of life. The class is the same, with one argument, `M(…, pushes=2)`, and so are the loss, the learning rates and the number of updates. Its memory, its windows and its practice last as long as the single-step M's in seconds, so they have half as many steps.
#
# **Predict:** half as many steps to the same moment. Half the drift?


# %% tags=["define", "extra"]
def every_second_row(memory: Memory) -> list[tuple[int, np.ndarray]]:
    """Each episode's number and every second of its rows, twice: so that its last row is kept, and so that it is not.

    They come in tens: ten episodes of the first kind, the same ten of the second. So both halves of an episode are among the tenth that M's doubt is learned on,
    or neither. (Of the last episodes, if they do not make ten, one may be split.)"""
    begins, ends = ((memory.rows[memory.rows == part]).tolist() for part in (memory.first, memory.last))
    tens = [range(ten, min(ten + 10, len(begins))) for ten in range(0, len(begins), 10)]
    return [(number, np.arange(begins[number] + (ends[number] - begins[number] - cut) % 2, ends[number] - cut + 1, 2))
            for ten in tens for cut in (0, 1) for number in ten]  # fmt: skip


def every_second(world: World) -> World:
    """The same episodes seen every second frame, each twice: with its last frame, and once more with the frames between, without the end.

    A row's action is the two pushes after it, (K, N, 2), and it pays the rewards of both."""
    memory, codes, halves = world.memory, world.codes, every_second_row(world.memory)
    episodes = []
    for number, rows in halves:
        whole, kept = memory.episodes[number], rows - int(memory.first[rows[0]])
        paid = whole.rewards[kept[:-1]] + whole.rewards[kept[:-1] + 1]
        ends = whole.terminated and kept[-1] == len(whole.actions)
        episodes.append(Episode(whole.seed, whole.frames[kept], whole.states[kept], whole.actions[kept[:-1]], paid, ends, whole.truncated))
    at, mine = torch.from_numpy(np.concatenate([rows for _, rows in halves])).to(memory.device), [number for number, _ in halves]  # (N,)
    pairs = torch.stack([codes.actions[:, at], codes.actions[:, (at + 1).clamp(max=len(memory) - 1)]], 2)  # (K, N, 2)
    thinned = Codes(codes.mu[:, at], codes.log_var[:, at], pairs, codes.shift[:, mine], codes.mirror[:, mine])
    return world._replace(memory=Memory(episodes, 0, memory.device), codes=thinned, context=world.context // 2)


def same_windows(memory: Memory, rows: Tensor) -> Tensor:
    """The windows `rows` (S, L) of a recording as `every_second` lays it down, (S, L / 2): the same moments, every second frame."""
    place = torch.from_numpy(np.argsort(np.concatenate([rows for _, rows in every_second_row(memory)]))).to(memory.device)  # (N,)
    return place[rows[:, ::2]]


def train_macro(progress: Progress, world: World, begin: dict | None = None, *, m: MSettings, practice: PracticeSettings | None = None, seed: int) -> dict:
    """Train a macro M as `train_m` does, with context, windows and practice of as many seconds, so of half as many steps."""
    its, half = every_second(world), m.but(context=max(2, m.context // 2), window=max(2, m.window // 2))
    shorter = practice and practice.but(alone=max(1, practice.alone // 2))
    return train_m(progress, its.memory, its.codes, begin, m=half, practice=shorter, seed=seed)


class MacroAgent(Agent):
    """Someone who chooses two pushes at once, in the real world: at every second frame it looks and chooses, then it does both."""

    def __init__(self, world: World, choose: Choose) -> None:
        """`world`: of a macro M. `choose`: pairs of pushes (W, 2), as in a dream."""
        super().__init__(world._replace(context=2 * world.context), choose)
        self.looked = self.second = None

    def push(self, new: Tensor) -> Tensor:
        """The pushes now, (W,): the first of a new pair, or the second of the last one. `new` (W,): whose episode has just begun."""
        pairs = self.a[:, :-1].unflatten(1, (-1, 2))  # (W, C, 2): all before now, of which M reads every second frame, counted back from now
        chosen = self.choose(0, remembered(self.world.m, self.z[:, ::2], pairs, self.known[:, ::2]))  # (W, 2)
        looks = new if self.looked is None else new | ~self.looked  # (W,)
        first, self.second = chosen[:, 0], chosen[:, 1] if self.second is None else torch.where(looks, chosen[:, 1], self.second)
        self.looked = looks
        return torch.where(looks, first, self.second)


# %% [markdown]
# ### Two tests of a long dream
#
# The controllers are the student's: 128 units, trained by the dream's own gradient, in dreams of 7, 15, 30, 50 and 100 steps, single or macro. **Does the real return follow the horizon?** The recipe says that short dreams are enough. But our dreams end with a handmade judgement: 30 steps of worth for a last state that is familiar. It stands for what comes later, so it could hide what a horizon does. We train with it, and without it.
#
# **Is a long dream still like life?** The trained controller plays 20 real episodes. From 500 moments in them M dreams on, with the same controller, for 200 frames, four seconds (the table in `assets/experiments/` has 100 as well). Then we compare: how many steps of these were lived, on average, in the dream and in reality; the spread of θ and x among the survivors; and the KL from the real to the dreamed distribution of (θ, x), each taken as a Gaussian with the mean and covariance of its survivors.


# %% tags=["define", "extra"]
def gaussian_gap(dreamed: Tensor, real: Tensor) -> float:
    """KL(real ‖ dreamed) in nats between Gaussians with the means and covariances of two samples, (S, D) each; nan for fewer than ten."""
    if min(len(dreamed), len(real)) < 10:
        return math.nan
    dreamed, real = dreamed.double(), real.double()
    covs = [torch.cov(part.T) + 1e-9 * torch.eye(part.shape[1], device=part.device) for part in (dreamed, real)]  # (D, D) each
    off, inverse = dreamed.mean(0) - real.mean(0), torch.linalg.inv(covs[0])
    return float(0.5 * ((inverse @ covs[1]).trace() + off @ inverse @ off - len(off) + torch.logdet(covs[0]) - torch.logdet(covs[1])))


@torch.no_grad()
def like_life(world: World, choose: Choose, probe: Probe, steps: int, count: int = 500) -> dict[str, float]:
    """Dreams of some steps, from moments of the world's own episodes, beside what was lived from there: `lived` steps, spreads of θ (degrees) and x (mm), `KL`.

    All numbers come in pairs, dreamed and real. nan where there is nothing to compare."""
    memory = world.memory
    left, ended = memory.last - memory.rows, memory.done[memory.last]  # (N,) each: steps until the recording ends, and whether the pole fell then
    rows = memory.rows[(memory.rows - memory.first >= world.context) & (left > 0) & ((left >= steps) | ended)]
    if not len(rows):
        return dict.fromkeys(("lived dreamed", "lived real", "θ dreamed", "θ real", "x dreamed", "x real", "KL"), math.nan)
    rows = rows[torch.randint(len(rows), (count,), generator=torch.Generator().manual_seed(0)).to(rows.device)]  # (S,)
    path = list(dream(world.m, world.states(rows), choose, steps))
    alive = torch.stack([torch.sigmoid(-world.m.says(step.state).done) for step in path], 1).cumprod(1)  # (S, T)
    stood = left[rows] >= steps  # (S,)
    after = probe(seen_again(world.v, path[-1].state.z[alive[:, -1] > 0.5][:, None]))[:, 0, [2, 0]]  # (S', 2): θ, x
    there = memory.states[rows[stood] + steps][:, [2, 0]]  # (S'', 2)
    found = {"lived dreamed": alive.sum(1).mean(), "lived real": left[rows].clamp(max=steps).float().mean()}
    for k, (name, unit) in enumerate({"θ": 180 / math.pi, "x": 1000}.items()):
        found |= {f"{name} {who}": unit * part[:, k].std() if len(part) > 1 else math.nan for who, part in (("dreamed", after), ("real", there))}
    return {name: round(float(value), 3) for name, value in (found | {"KL": gaussian_gap(after, there)}).items()}


def try_horizon(
    progress: Progress, world: World, probe: Probe, *, horizon: int, how: TrainSettings, c: CSettings, seed: int, episodes: int, workers: int
) -> dict:
    """Train a controller in dreams of one horizon, single or macro as the world is, and put both questions: a `line` for the table, and two for `life`."""
    macro = world.m.pushes > 1
    school = School(world, c.but(horizon=horizon), seed, MacroAgent if macro else Agent)
    found = train_student(progress, school, way="gradient", hidden=128, lawful=False, how=how, seed=seed, workers=workers)
    choose = sure(frozen(school.net(128, False), found["actor"]))
    played = play(school.agent(world, choose), seeds_for("roads", seed, episodes), workers)
    real = [len(episode.actions) for episode in played]
    own = every_second(world._replace(context=2 * world.context).looking_at(played)) if macro else world.looking_at(played)
    life = [{"frames": frames} | like_life(own, choose, probe, frames // world.m.pushes) for frames in (100, 200)]
    return {"line": {"real": float(np.mean(real)), "worst": min(real), "seconds": round(found["seconds"], 1)}, "life": life}


# %% tags=["run", "extra"]
macro_drift_lines, macro_lines, life_lines = [], [], []
if "frontier" in live:
    single_rows = windows(good_world.memory, good_world.context + 200, 300)  # (S, C + T): the same moments for all
    frontier_plays = {1: (world, good_world, single_rows), 2: (every_second(world), every_second(good_world), same_windows(good_world.memory, single_rows))}
    frontier_how = {"how": TrainSettings(learning_rate=1e-2, batch=8 if tiny else 64, steps=4 if tiny else 150), "workers": settings.collect.workers}
    for frontier_luck, frontier_plain in enumerate(plain_stages):
        frontier_seed = {"seed": settings.seed + frontier_luck}
        macro_forced = keep(train_macro, world, after=(code_stage,), name="macro-m", m=settings.m, **frontier_seed)
        macro_practice = {"m": settings.m, "practice": settings.practice} | frontier_seed
        macro_stage = keep(train_macro, world, macro_forced.result["weights"], after=(macro_forced,), name="macro-practice", **macro_practice)
        for frontier_name, jump, frontier_stage in (("single steps", 1, frontier_plain), ("macro steps", 2, macro_stage)):  # jump: in frames
            frontier_m = frozen(M(settings.v.latents, settings.m.hidden, jump), frontier_stage.result)
            *frontier_worlds, frontier_rows = frontier_plays[jump]
            frontier_world, frontier_good = (its._replace(m=frontier_m) for its in frontier_worlds)
            frontier_door = keep(train_verifier, frontier_world, after=(frontier_stage,), name="verifier-again", verifier=settings.verifier, **frontier_seed)
            frontier_verifier = frozen(Verifier(settings.v.latents, settings.m.hidden), frontier_door.result)
            frontier_who = {"steps": frontier_name} | frontier_seed
            macro_drift_lines += [frontier_who | line for line in drift_lines(frontier_good, wide_probe, frontier_verifier, frontier_rows, jump)]
            for horizon, worth in ((horizon, worth) for horizon in ((5,) if tiny else (7, 15, 30, 50, 100)) for worth in (settings.c.last_worth, 0.0)):
                frontier_settings = frontier_how | frontier_seed | {"horizon": horizon, "c": settings.c.but(last_worth=worth), "episodes": 2 if tiny else 20}
                frontier_tried = keep(try_horizon, frontier_world, wide_probe, after=(frontier_stage,), name="horizon", **frontier_settings).result
                frontier_case = frontier_who | {"horizon": horizon, "worth": worth}
                macro_lines.append(frontier_case | frontier_tried["line"])
                life_lines += [frontier_case | line for line in frontier_tried["life"]]
macro_drift = table_of("frontier_drift", macro_drift_lines)
macro_table, life_table = table_of("frontier", macro_lines), table_of("frontier_life", life_lines)

# %% alt="Drift of single-step and macro-step Ms: angle, position, KL and the verifier's loss against frames alone." tags=["run", "extra"]
if len(macro_drift):
    show_bands(macro_drift, "steps", "frames", DRIFTS, "Drift on good play: mean and range of the seeds", yscale="log", xlabel="frames alone")
    far_rows = macro_drift[macro_drift["frames"].isin((2, 20, 40, 60, 100, 200))]
    print("means, and differences to single steps, seed by seed, with 95 % intervals")
    display(pandas.DataFrame({(what, k): paired(rows, "steps", what, "single steps") for what in [*DRIFTS, "90"] for k, rows in far_rows.groupby("frames")}).T)

# %% alt="Real return against the horizon in frames, with and without the last state's worth, for single and macro steps." tags=["run", "extra"]
if len(macro_table):
    macro_frames = macro_table["horizon"] * macro_table["steps"].map({"single steps": 1, "macro steps": 2})
    macro_wide = macro_table.assign(frames=macro_frames).pivot(index=["steps", "seed", "frames"], columns="worth", values="real").reset_index()
    macro_labels = {worth: f"real return (worth {worth:.0f})" for worth in sorted(set(macro_table["worth"]), reverse=True)}
    show_bands(
        macro_wide,
        "steps",
        "frames",
        macro_labels,
        "Real return with dreams of some length, last state worth 30 and 0",
        ylim=(0, 520),
        xlabel="horizon (frames)",
    )
    display(macro_table.pivot_table(index=["worth", "steps"], columns="horizon", values="real", aggfunc=["mean", "min", "max"]).round(0).astype(int))
    life_far = life_table[(life_table["worth"] > 0) & (life_table["frames"] == 200)].drop(columns=["seed", "worth", "frames"])
    display(life_far.groupby(["steps", "horizon"]).mean().round(2))

# %% [markdown]
# **No: macro-actions, trained like this, do not hold the dream.** Both kinds of M dream through the same 300 stretches of good play. The first macro step is as good as two single ones (0.30° against 0.33° after two frames). But then its error grows faster: after 20 frames it is 1.10° instead of 0.79°, after 40 frames 5.7° instead of 4.3° (p = 0.02 and 0.09). Why, we did not measure. The KL is 15 % higher after 20 frames (p = 0.01), and both kinds are too sure of themselves, a macro M more so: after 40 frames 75 % of the true latents lie in its 90 % interval, 83 % in the other's (p = 0.04). After 60 frames both dreams have lost the pole. Each M's own verifier, which judges looks only, finds macro dreams worse up to 40 frames (p = 0.01), and after 100 the seeds scatter too much to say. After a hundred frames, in degrees and millimetres, neither the contrast nor macro steps come near half of the baseline's drift.
#
# **Do short horizons suffice? Yes, with two conditions.** The first is a minimal length, and it counts in seconds, not in steps. Dreams of 0.3 s fail, be they of 15 single steps (82 steps of life on average) or of 7 macro ones (77). Dreams of 0.6 s reach 500 with every seed, be they of 30 single steps or of 15 macro ones. The second condition: somebody judges the last state. Without its worth, up to 30 extra points for ending alive in a familiar state, no horizon is safe. The return rises from 218 to 451 between 15 and 50 single steps, but at 100 it falls to 273, and the seeds lie between 103 and 461; macro steps give 184, 215, 369 and 139. And too long can hurt even with the worth: dreams of 2 s are fine with both kinds of steps, but macro dreams of 4 s gave between 102 and 117.
#
# **Are long dreams like life?** In broad strokes. Take the horizons at which all three seeds reach 500 with the worth, and look 200 frames ahead, on average over the seeds. (The real cart stands all that time: these are the episodes that reached 500.) In single-step dreams 175 or 176 of the 200 steps are lived, in macro dreams 98 of 100: M takes a little chance of death off at every step (0.13 % each time would give the 176, 0.04 % the 98). The spread of θ is 0.7 to 1.7° in reality, and 0.6 to 2.7° in dreams. That of x is 12 to 27 mm in reality and 12 to 120 mm in dreams, as the probe reads them. And a KL of 1 to 6 nats between two such narrow clouds says that they don't lie on top of each other. For controllers that fall, a dream is too kind: it gives them two to three times the steps that they live (single steps, horizon 15: 94 against 35). So a long dream tells who survives from who does not; not for how long, nor where it stands.
#
# <details><summary><b>Exercise 12.</b> A pole multiplies an error by e in 12.5 frames. Suppose each step of M adds the same new error ε, be it of one frame or of two. By which factor is a macro dream better after a long time, and how many frames of dreaming does that buy? (Solution)</summary>
#
# In one frame an error grows by g = e^0.08 = 1.083. Single steps: ε(1 + g + g² + …), n terms, so about ε gⁿ / (g − 1). Macro steps: half the terms, with g² between them, about ε gⁿ / (g² − 1). The ratio is g + 1 = 2.08. An error that is 2.08 times smaller buys ln 2.08 / 0.08 = 9 frames, 0.2 s. So even under this kind supposition the gain is small; and a macro step with more than 2.08 times the error of a single one gains nothing at all.
# </details>

# %% [markdown]
# ## 14 · Take the pole yourself
#
# A dream is easiest to judge from inside. The next cell writes `dream.html`, one file of about a megabyte: V's decoder, M, the verifier and C in half precision, and two hundred lines of markup and plain JavaScript that do what the PyTorch code above does. It needs no kernel and no network, so it works on a phone as it does here. Hold a button or an arrow key, and keep the pole up. Then press *wake up*: the true physics, from the same state and under the same pushes, runs beside the dream.
#
# **Predict:** for how many steps will your dream and reality agree? And whose pole falls first?

# %% cellView="form" tags=["define", "extra"]
# @title The page: its template
PAGE = r"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Take the pole yourself: a dream of CartPole</title>
<style>
  body { margin: 0; background: #fff; color: #1a1a1a; font: 17px/1.5 system-ui, sans-serif; }
  main { max-width: 720px; margin: 0 auto; padding: 12px 16px 32px; }
  h1 { font-size: 1.6em; margin: 0.2em 0; } h2 { font-size: 1.2em; margin: 1.2em 0 0.2em; }
  .views { display: flex; flex-wrap: wrap; gap: 12px; }
  figure { margin: 0; flex: 1 1 300px; } figure[hidden] { display: none; }
  canvas { display: block; width: 100%; aspect-ratio: 96 / 38; border: 1px solid #767676; border-radius: 6px; }
  figcaption, .small { font-size: 0.88em; color: #444; }
  .pads { display: grid; grid-template-columns: 1fr 1fr; gap: 12px; margin: 12px 0; }
  button { font: inherit; color: #1a1a1a; background: #eef2f7; border: 1px solid #5b6b7d; border-radius: 6px; padding: 8px 12px; cursor: pointer; touch-action: none; user-select: none; -webkit-user-select: none; -webkit-touch-callout: none; }
  .pads button { padding: 22px 0; font-size: 1.15em; } button[aria-pressed="true"] { background: #0b5394; color: #fff; }
  .row { display: flex; flex-wrap: wrap; gap: 10px; align-items: center; margin: 10px 0; }
  label { display: grid; grid-template-columns: 15em 1fr 4em; gap: 8px; align-items: center; margin: 6px 0; }
  meter, input[type="range"] { width: 100%; } #story { min-height: 3em; margin: 10px 0; font-weight: 600; }
  @media (max-width: 520px) { label { grid-template-columns: 8em 1fr 4em; } }
</style>
</head>
<body>
<main>
<h1>Take the pole yourself</h1>
<p>This picture is no camera's. A neural network dreams it: M says what happens next, V draws it, and nothing else moves the pole. Keep it up for as long as you can.</p>
<div class="views">
  <figure><canvas id="dream" width="64" height="38" role="img" aria-label="V's drawing of the dream: a dark cart and a grey pole"></canvas><figcaption>the dream: what V draws of M's latent z</figcaption></figure>
  <figure id="awake" hidden><canvas id="real" width="960" height="380" role="img" aria-label="The true cart and pole under the same pushes"></canvas><figcaption>reality: the true physics from the same state, under the same pushes</figcaption></figure>
</div>
<div class="pads"><button id="left" type="button">◀ push left</button><button id="right" type="button">push right ▶</button></div>
<p class="small">Hold a button, or the arrow keys ← and → (click into the page first). In CartPole each step pushes: while you hold nothing, the cart is pushed left and right in turn.</p>
<p id="story" role="status">Push to begin.</p>
<label>M believes that you are alive <meter id="alive" min="0" max="1" low="0.5" value="1"></meter> <output id="alive-says">100 %</output></label>
<label>the verifier believes the dream <meter id="trust" min="0" max="1" low="0.5" value="1"></meter> <output id="trust-says">–</output></label>
<label for="tau">noise where M is unsure, τ <input id="tau" type="range" min="0" max="3" step="0.25" value="0"> <output id="tau-says">0</output></label>
<label for="pace">steps a second (real: 50) <input id="pace" type="range" min="5" max="50" step="5" value="15"> <output id="pace-says">15</output></label>
<div class="row"><button id="again" type="button">again</button><button id="wake" type="button" aria-pressed="false">wake up: show reality</button><button id="pilot" type="button" aria-pressed="false">let C play</button></div>
<p class="small">C, the trained controller, would push <b id="advice">–</b> now.</p>
<h2>What to look for</h2>
<p>A dream agrees with reality for a while, then each goes its own way. Wake up and watch: the count says for how many steps the two angles differed by less than 2° (the dream's is read from z by a linear probe, which is itself a little off). Push to one side until the pole falls, and watch M's belief that you are alive. It takes a little chance off at every step, so each dream ends some day, be the pole upright or not.</p>
<p>Let C play: it was trained in nothing but such dreams, thirty steps long. It looks at the dream only; reality gets pushes that were chosen for the dream, so there the pole soon falls. Awake, where C looks at reality, it plays 500 steps. And turn τ up: where does the picture stop looking like a cart?</p>
<p class="small">Everything runs in this page: __COUNT__ numbers in half precision, no network. From the notebook <i>World models: CartPole from pixels, solved inside its own dream</i>.</p>
</main>
<script id="data" type="application/json">__DATA__</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);

// The weights: half-precision numbers (one bit of sign, five of exponent, ten of fraction), one array after the other.
function fromHalf(h) {
  const sign = h >> 15 ? -1 : 1, exponent = (h >> 10) & 31, fraction = h & 1023;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * fraction / 1024);
}
const halves = new Uint16Array(Uint8Array.from(atob(data.weights), c => c.charCodeAt(0)).buffer);
const W = {};
let place = 0;
for (const [name, size] of data.sizes) {
  W[name] = Float64Array.from(halves.subarray(place, place + size), fromHalf);
  place += size;
}
const Z = data.latents, H = data.hidden;

const sigmoid = x => 1 / (1 + Math.exp(-x));
function linear(x, name) {  // y = W x + b, W stored row by row
  const w = W[name + ".weight"], y = Float64Array.from(W[name + ".bias"]);
  for (let o = 0, k = 0; o < y.length; o++) for (let i = 0; i < x.length; i++) y[o] += w[k++] * x[i];
  return y;
}

// ---- M: what happens next ----
function begin(number) {  // a state from the recordings, as M read it
  const s = W.starts.subarray(number * (2 * Z + 2 * H), (number + 1) * (2 * Z + 2 * H));
  return { z: s.slice(0, Z), before: s.slice(Z, 2 * Z), h: s.slice(2 * Z, 2 * Z + H), c: s.slice(2 * Z + H), blind: 0 };
}
function step(s, push) {  // M.step of the notebook: push is 0 (left) or 1 (right)
  const gates = linear([...s.z, ...s.z.map((v, i) => data.change * (v - s.before[i])), 2 * push - 1, ...s.h], "gates");
  const h = new Float64Array(H), c = new Float64Array(H);
  for (let j = 0; j < H; j++) {
    c[j] = sigmoid(gates[2 * H + j]) * s.c[j] + sigmoid(gates[H + j]) * Math.tanh(gates[j]);
    h[j] = sigmoid(gates[3 * H + j]) * Math.tanh(c[j]);
  }
  const change = linear(h, "change");
  return { z: s.z.map((v, i) => v + change[i]), before: s.z, h, c, blind: s.blind + 1 };
}
const done = s => sigmoid(linear(s.h, "done")[0]);  // the probability that the episode has ended
function doubt(s) {  // M's σ, where τ may add noise
  return linear([...s.h, Math.log1p(s.blind), s.blind / 10], "log_var").map(v => Math.exp(0.5 * Math.min(3, Math.max(-16, data.doubt * v))));
}
function normal() { return Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random()); }

// ---- the verifier, C, and a linear reading of the angle ----
function confidence(s) {
  const look = [...s.z, ...s.z.map((v, i) => v - s.before[i]), ...s.h].map((v, i) => (v - W["look.mean"][i]) / W["look.scale"][i]);
  const silu = v => v * sigmoid(v);
  return sigmoid(linear(linear(linear(look, "layers.0").map(silu), "layers.2").map(silu), "layers.4")[0]);
}
const advice = s => linear([...s.z, ...s.h], "c")[0] > 0 ? 1 : 0;
const reading = s => linear(s.z, "probe")[0];  // θ in degrees

// ---- V's decoder: z becomes a picture ----
function doubled(x, channels, height, width, name, last) {  // a transposed convolution, kernel 4, stride 2, padding 1
  const bias = W[name + ".bias"], w = W[name + ".weight"], outs = bias.length, y = new Float64Array(outs * 4 * height * width);
  for (let o = 0; o < outs; o++) y.fill(bias[o], o * 4 * height * width, (o + 1) * 4 * height * width);
  for (let c = 0; c < channels; c++) for (let i = 0; i < height; i++) for (let j = 0; j < width; j++) {
    const v = x[(c * height + i) * width + j];
    if (v === 0) continue;
    for (let o = 0; o < outs; o++) for (let p = 0; p < 4; p++) {
      const row = 2 * i - 1 + p;
      if (row < 0 || row >= 2 * height) continue;
      for (let q = 0; q < 4; q++) {
        const column = 2 * j - 1 + q;
        if (column >= 0 && column < 2 * width) y[(o * 2 * height + row) * 2 * width + column] += v * w[((c * outs + o) * 4 + p) * 4 + q];
      }
    }
  }
  return last ? y : y.map(v => Math.max(0, v));
}
function decode(z) {  // the newest frame, 64 x 64 in [0, 1]
  let x = linear(z, "from_z").map(v => Math.max(0, v)), height = 2, width = 4;
  for (let layer = 0; layer < 4; layer++) {
    x = doubled(x, x.length / (height * width), height, width, "decoder." + layer, layer === 3);
    height *= 2; width *= 2;
  }
  const picture = Float64Array.from(W.mean_picture);
  for (let k = 0; k < x.length; k++) picture[data.band * 64 + k] += x[k] / data.scale;
  return picture.map(v => Math.min(1, Math.max(0, v)));
}

// ---- reality: CartPole's own equations, 0.02 s a step ----
function physics([x, v, angle, spin], push) {
  const sin = Math.sin(angle), cos = Math.cos(angle), pushed = ((push ? 10 : -10) + 0.05 * spin * spin * sin) / 1.1;
  const turn = (9.8 * sin - cos * pushed) / (0.5 * (4 / 3 - 0.1 * cos * cos / 1.1)), speed = pushed - 0.05 * turn * cos / 1.1;
  return [x + 0.02 * v, v + 0.02 * speed, angle + 0.02 * spin, spin + 0.02 * turn];
}
const fell = ([x, , angle]) => Math.abs(x) > 2.4 || Math.abs(angle) > 12 * Math.PI / 180;

// ---- the game ----
const held = { left: false, right: false };
let game;
function again() {
  const number = game ? (game.number + 1) % data.states.length : 0;
  game = { number, dream: begin(number), real: data.states[number], alive: 1, steps: 0, agreed: 0, parted: false, realSteps: 0, realFell: false, begun: pressed("pilot"), over: false, ended: 0 };
  say(game.begun ? "" : "Push to begin.");
  draw();
}
function advance() {  // one step of the dream, and of reality
  const push = held.left !== held.right ? +held.right : pressed("pilot") ? advice(game.dream) : game.steps % 2;
  const tau = +$("tau").value;
  game.dream = step(game.dream, push);
  if (tau > 0) { const sigma = doubt(game.dream); game.dream.z = game.dream.z.map((v, i) => v + tau * sigma[i] * data.noisy[i] * normal()); }
  game.alive *= 1 - done(game.dream);
  game.steps++;
  if (!game.realFell) { game.real = physics(game.real, push); game.realSteps++; game.realFell = fell(game.real); }
  game.parted ||= game.realFell || Math.abs(reading(game.dream) - game.real[2] * 180 / Math.PI) > 2;
  if (!game.parted) game.agreed = game.steps;
  game.over = game.alive < 0.5;
  if (game.over) game.ended = performance.now();
  const truth = game.realFell ? `In reality it ended after ${game.realSteps}.` : "In reality it had not ended by then.";
  const both = `Dream and reality agreed for ${game.agreed}. ${truth}`;
  say(game.over ? `After ${game.steps} steps M gives you less than an even chance to be alive. ${both}` : `${game.steps} steps. ${pressed("wake") ? both : ""}`);
}
const pressed = id => $(id).getAttribute("aria-pressed") === "true";
function say(text) {  // a screen reader hears the beginning and the end, not each step
  $("story").setAttribute("aria-live", game.begun && !game.over ? "off" : "polite");
  if ($("story").textContent !== text) $("story").textContent = text;
}
const percent = p => `${Math.round(100 * p)} %`;
function draw() {
  const picture = decode(game.dream.z), image = new ImageData(64, 38);
  for (let k = 0; k < 64 * 38; k++) image.data.set([255 * picture[20 * 64 + k], 255 * picture[20 * 64 + k], 255 * picture[20 * 64 + k], 255].map(Math.round), 4 * k);
  $("dream").getContext("2d").putImageData(image, 0, 0);
  const trust = confidence(game.dream);
  for (const [id, p] of [["alive", game.alive], ["trust", trust]]) { $(id).value = p; $(id + "-says").textContent = percent(p); }
  $("advice").textContent = advice(game.dream) ? "right" : "left";
  if (pressed("wake")) drawReal(...game.real);
}
function drawReal(x, v, angle) {  // as gymnasium draws it: 600 x 400, 125 pixels a metre; only the rows that the dream shows
  const pen = $("real").getContext("2d");
  pen.setTransform(1.6, 0, 0, 1.6, 0, -200);
  pen.fillStyle = "#fff"; pen.fillRect(0, 0, 600, 400);
  pen.fillStyle = "#000"; pen.fillRect(0, 299.5, 600, 1);
  pen.fillRect(300 + 125 * x - 25, 285, 50, 30);
  pen.translate(300 + 125 * x, 292.5); pen.rotate(angle);
  pen.fillStyle = "#767676"; pen.fillRect(-5, -120, 10, 125);
}
let last = 0, waiting = 0, frames = 0;
function tick(now) {  // called for each frame of the screen
  frames++;
  waiting = Math.min(waiting + (now - last) / 1000 * $("pace").value, 3);
  last = now;
  if (!game.begun || game.over) waiting = 0;
  if (waiting >= 1) { for (; waiting >= 1 && !game.over; waiting--) advance(); draw(); }
  requestAnimationFrame(tick);
}
function hold(side, on) {
  if (on && game.over && performance.now() - game.ended < 1000) return;  // time to read how it ended
  held[side] = on;
  if (on) { press("pilot", false); if (game.over) again(); game.begun = true; }
}
function press(id, on) { $(id).setAttribute("aria-pressed", on); }
for (const side of ["left", "right"]) {
  $(side).addEventListener("pointerdown", event => { $(side).setPointerCapture(event.pointerId); hold(side, true); });
  for (const end of ["pointerup", "pointercancel"]) $(side).addEventListener(end, () => hold(side, false));
  for (const [kind, on] of [["keydown", true], ["keyup", false]]) addEventListener(kind, event => {
    if (event.key.toLowerCase() !== "arrow" + side || (on && event.target.type === "range")) return;
    event.preventDefault();
    if (!event.repeat) hold(side, on);
  });
}
addEventListener("blur", () => { held.left = held.right = false; });
for (const id of ["tau", "pace"]) {
  $(id).addEventListener("input", () => { $(id + "-says").textContent = $(id).value; });
  $(id).addEventListener("pointerup", () => $(id).blur());  // the arrow keys are the cart's again
}
$("again").addEventListener("click", again);
$("wake").addEventListener("click", () => { press("wake", !pressed("wake")); $("awake").hidden = !pressed("wake"); draw(); });
$("pilot").addEventListener("click", () => { press("pilot", game.over || !pressed("pilot")); if (game.over) again(); game.begun = true; });
again();
requestAnimationFrame(tick);
</script>
</body>
</html>
"""


# %% tags=["define", "extra"]
import base64


def without_norm(convolution: nn.ConvTranspose2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weights (C, O, 4, 4) and biases (O,) that do in one step what a transposed convolution and the batch norm behind it do, when V is not in training."""
    size = norm.weight / (norm.running_var + norm.eps).sqrt()  # (O,)
    return convolution.weight * size[:, None, None], (convolution.bias - norm.running_mean) * size + norm.bias


def page_numbers(world: World, verifier: Verifier, weights: Tensor, probe: Probe, starts: State) -> dict[str, Tensor]:
    """All numbers that the page computes with, by name. `probe`: reads θ from z. `starts`: states (S, …) in which a dream can begin."""
    found = {f"{part}.{kind}": value for part in ("gates", "change", "log_var", "done") for kind, value in getattr(world.m, part).named_parameters()}
    found |= {name: value for name, value in verifier.named_parameters()} | {"look.mean": verifier.mean, "look.scale": verifier.scale}
    *blocks, last = world.v.decoder
    for layer, block in enumerate(blocks):
        found[f"decoder.{layer}.weight"], found[f"decoder.{layer}.bias"] = without_norm(block[0], block[1])
    found |= {"decoder.3.weight": last.weight[:, -1:], "decoder.3.bias": last.bias[-1:]}  # the newest of the four frames
    found |= {"from_z.weight": world.v.from_z.weight, "from_z.bias": world.v.from_z.bias, "mean_picture": world.v.mean_picture}
    slope = torch.rad2deg(probe.weight[:, 2] / probe.scale)  # (Z,) degrees per unit of z
    found |= {"probe.weight": slope, "probe.bias": torch.rad2deg(probe.offset[2:3]) - (slope * probe.mean).sum()}
    found |= {"c.weight": weights[:-1], "c.bias": weights[-1:], "starts": torch.cat([starts.z, starts.before, starts.h, starts.c], 1)}
    return found


def write_page(file: Path, numbers: dict[str, Tensor], world: World, states: Tensor, noisy: Tensor) -> None:
    """Write the page with its numbers inside, in half precision. `states` (S, 4): the true ones of the starts, for the physics. `noisy` (Z,): where τ adds noise."""
    flat = {name: value.detach().cpu().half().flatten().numpy() for name, value in numbers.items()}
    data = {"latents": len(noisy), "hidden": world.m.hidden, "change": M.CHANGE, "doubt": M.DOUBT, "band": BAND.start, "scale": PIXEL_SCALE,
            "states": states.tolist(), "noisy": noisy.tolist(), "sizes": [(name, len(part)) for name, part in flat.items()],
            "weights": base64.b64encode(np.concatenate(list(flat.values())).astype("<f2").tobytes()).decode()}  # fmt: skip
    text = PAGE.replace("__COUNT__", f"{sum(map(len, flat.values())):,}").replace("__DATA__", json.dumps(data))
    write_whole(file, text.encode())


# %% tags=["run", "extra"]
page_calm = calm_moments(world, settings.seed, 256)
page_rows = page_calm[memory.states[page_calm].abs().sum(1).argsort()[:12]]  # the slowest and most upright
page_theta = Probe(codes.mu[0], memory.states)  # fitted on pictures as the game shows them: neither shifted nor mirrored
write_page(OUT / "dream.html", page_numbers(world, verifier, ship, page_theta, world.states(page_rows)), world, memory.states[page_rows], noisy)
print(f"dream.html: {(OUT / 'dream.html').stat().st_size / 1e6:.2f} MB")

# %% tags=["run", "extra", "widget"]
if not switch("WM_NO_WIDGETS"):  # a megabyte is too much for a saved notebook
    framed = (OUT / "dream.html").read_text().replace("&", "&amp;").replace('"', "&quot;")
    display(HTML(f'<iframe title="the dream to play with" srcdoc="{framed}" width="100%" height="820" style="border:0"></iframe>'))

# %% [markdown]
# ## 15 · A cousin that dreams in words
#
# An agent that calls tools lives in a world, too: it sends a line and gets one back. Can it *foresee* the answer? Then it can look before it leaps: dream the call first, and hold it back if the dream ends badly. It is the same idea with other letters: predict what the world will say, say how sure, act only when sure.
#
# ### A small world of tools
#
# An office has six tools: an account, a calendar, a store, a to-do list, a counter and a converter. All but the converter have a memory. A call is a JSON list, its answer a JSON object. The rules fit on one screen, so every prediction can be checked.

# %% tags=["define", "extra"]
KEYS, ITEMS, UNITS = ("red", "green", "blue"), ("bread", "milk", "salt"), {"km": 1_000, "hours": 60, "kg": 1_000}
DIGITS, HOURS = range(1, 10), range(1, 7)
TOOLS = {"account": {"pay": (DIGITS,), "earn": (DIGITS,)}, "calendar": {"book": (HOURS,), "cancel": (HOURS,)}, "counter": {"count": (range(1, 4),)},
         "store": {"put": (KEYS, DIGITS), "get": (KEYS,), "delete": (KEYS,)}, "to-do list": {"add": (ITEMS,), "strike": (ITEMS,)},
         "converter": {"convert": (DIGITS, tuple(UNITS))}}  # tool -> what it can be asked, and what each argument may be  # fmt: skip
ASKS = {name: arguments for tool in TOOLS.values() for name, arguments in tool.items()}
TOOL_OF = {name: tool for tool, asks in TOOLS.items() for name in asks}


class Office:
    """The tools and their state. Called with a call, [what, argument, …], it answers; {"error": why} where that can't be done, and then nothing has changed."""

    def __init__(self) -> None:
        """5 in the account, all else is empty."""
        self.balance, self.booked, self.stored, self.todo, self.counter = 5, set(), {}, set(), 0

    def __call__(self, call: list) -> dict:
        """The answer to one call."""
        name, *given = call
        if name not in ASKS:
            return {"error": "no such call"}
        if len(given) != len(ASKS[name]) or not all(value in allowed for value, allowed in zip(given, ASKS[name])):
            return {"error": "bad argument"}
        first = given[0]
        match name:
            case "pay" if first > self.balance:
                return {"error": "overdraft"}
            case "book" if first in self.booked:
                return {"error": "taken"}
            case "cancel" if first not in self.booked:
                return {"error": "free"}
            case "get" | "delete" if first not in self.stored:
                return {"error": "missing"}
            case "strike" if first not in self.todo:
                return {"error": "not open"}
            case "pay" | "earn":  # the account holds 9 at most
                self.balance = min(9, self.balance + (first if name == "earn" else -first))
                return {"balance": self.balance}
            case "count":  # from 0 to 9, and round again
                self.counter = (self.counter + first) % 10
                return {"count": self.counter}
            case "book" | "cancel":
                self.booked ^= {first}
                return {"booked" if name == "book" else "free": first}
            case "add" | "strike":
                self.todo = self.todo | {first} if name == "add" else self.todo - {first}
                return {"open" if name == "add" else "done": first}
            case "put":
                self.stored[first] = given[1]
                return {"stored": first}
            case "get":
                return {"value": self.stored[first]}
            case "delete":
                self.stored.pop(first)
                return {"deleted": first}
            case "convert":
                return {"is": first * UNITS[given[1]]}


# %% tags=["define", "extra"]
Trace = list[tuple[list, dict]]  # calls and their answers


def random_trace(luck: np.random.Generator, calls: int) -> Trace:
    """A random user in a new office, who works with two of the tools; one call in thirty has a wrong argument."""
    office, trace = Office(), []
    names = [name for tool in luck.choice(list(TOOLS), 2, replace=False) for name in TOOLS[tool]]
    for _ in range(calls):
        name = names[luck.integers(len(names))]
        call = [name, *(allowed[luck.integers(len(allowed))] for allowed in ASKS[name])]
        call = call if luck.random() > 1 / 30 else [*call[:-1], 0]
        trace.append((call, office(call)))
    return trace


# %% [markdown]
# ### Tokens
#
# A network reads numbers, so lines become tokens. As in a language model, what comes often is one token: a call with its first argument, how an answer begins, a word in quotes, an end. Digits stand alone. What is not known is spelt byte by byte, so any line can be written and read back.

# %% tags=["define", "extra"]
import re

REASONS = "overdraft", "taken", "free", "missing", "not open", "bad argument", "no such call"
ANSWERS = "error", "balance", "booked", "free", "stored", "value", "deleted", "open", "done", "count", "is"
PIECES = [
    *(f'["{name}",{json.dumps(value)}' for name in ASKS for value in (0, *ASKS[name][0])),
    *(f'{{"{name}":' for name in ANSWERS),
    *map(json.dumps, [*KEYS, *ITEMS, *UNITS, *REASONS]),
    "]\n",
    "}\n",
]
TOKENS = [*(bytes([byte]) for byte in range(256)), *(piece.encode() for piece in PIECES)]
NUMBER_OF = {token: number for number, token in enumerate(TOKENS)}
END, ERROR = NUMBER_OF[b"}\n"], NUMBER_OF[b'{"error":']


def line_of(said: list | dict) -> str:
    """A call or an answer as a line of JSON."""
    return json.dumps(said, separators=(",", ":")) + "\n"


@functools.cache
def to_tokens(line: str) -> tuple[int, ...]:
    """A line as numbers: known pieces whole, all else byte by byte. (Kept: most lines come again and again.)"""
    parts = (part.encode() for part in re.findall(r'\["[^"\\]*",(?:\d|"[^"\\]*")|{"[^"\\]*":|"[^"\\]*"|[]}]\n|.', line, re.DOTALL))
    return tuple(token for part in parts for token in ([NUMBER_OF[part]] if part in NUMBER_OF else part))


def to_line(tokens: Any) -> str:
    """Back again; what is no text becomes �."""
    return b"".join(TOKENS[token] for token in tokens).decode(errors="replace")


# %% [markdown]
# ### The model
#
# The loop of training is the same, the sequence is another: an LSTM reads the trace token by token, and predicts the next token. Only the answers count in the loss. What a user asks next is chance, and there is nothing to learn in it. Every batch is made of new traces of sixteen calls, each of a user who works with two of the six tools.

# %% tags=["define", "extra"]
CALLS = 16  # in a trace of the training
REACHES = 100.0  # tokens: the longest memory that the LSTM begins with


class Speaker(nn.Module):
    """An LSTM that reads tokens and says what follows."""

    def __init__(self, hidden: int = 128) -> None:
        """`hidden`: the size of h."""
        super().__init__()
        self.letters, self.lstm, self.next = nn.Embedding(len(TOKENS), 48), nn.LSTM(48, hidden, batch_first=True), nn.Linear(hidden, len(TOKENS))
        span = torch.empty(hidden).uniform_(1, REACHES).log()  # a cell forgets after about e^b steps: memories of all lengths from the start
        with torch.no_grad():
            self.lstm.bias_hh_l0.zero_()
            self.lstm.bias_ih_l0[:hidden], self.lstm.bias_ih_l0[hidden : 2 * hidden] = 0.0, span
            self.lstm.weight_ih_l0.normal_(0, 2.5 * 48**-0.5)  # gates that open and close from the start: PyTorch's own are seven times as small

    def forward(self, tokens: Tensor, memory: Any = None) -> tuple[Tensor, Any]:
        """h (B, L, H) after each of some tokens (B, L), and the memory for what comes after them. `self.next(h)` are the logits of what follows."""
        return self.lstm(self.letters(tokens), memory)


def written(traces: list[Trace]) -> tuple[Tensor, Tensor]:
    """Traces as tokens (B, L), padded with line ends; and where tokens of answers stand, (B, L) bool."""
    rows = [[(to_tokens(line_of(said)), said is answer) for call, answer in trace for said in (call, answer)] for trace in traces]
    tokens = [torch.tensor([token for line, _ in row for token in line]) for row in rows]
    asked = [torch.tensor([is_answer for line, is_answer in row for _ in line]) for row in rows]
    pad = nn.utils.rnn.pad_sequence
    return pad(tokens, True, END).to(DEVICE), pad(asked, True, False).to(DEVICE)


def train_speaker(progress: Progress, *, how: TrainSettings, seed: int) -> dict:
    """Train a Speaker on random traces, new ones in every step."""
    torch.manual_seed(seed)
    model = Speaker().to(DEVICE)

    def batch_loss(generator: torch.Generator, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean nats per token of the answers in one batch."""
        luck = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        tokens, asked = written([random_trace(luck, CALLS) for _ in range(how.batch)])  # (B, L) each
        h, _ = model(tokens[:, :-1])  # (B, L − 1, H)
        loss = F.cross_entropy(model.next(h[asked[:, 1:]]), tokens[:, 1:][asked[:, 1:]])
        return loss, {"loss": loss}

    return fit(model, batch_loss, how, seed, progress, "words", 1.0)


# %% tags=["define", "extra"]
class Foreseen(NamedTuple):
    """What the model expects as the answer to a call."""

    line: str
    confidence: float  # the probability of the whole line
    failure: float  # the probability that it is an error
    memory: Any  # the model's after the call, before any answer


LONGEST = 16  # tokens of an answer


@torch.no_grad()
def heard(speaker: Speaker, tokens: list[int], memory: Any = None) -> tuple[Tensor, Any]:
    """The probabilities (all tokens,) of what follows some tokens, and the memory after them."""
    h, memory = speaker(torch.tensor([list(tokens)], device=DEVICE), memory)
    return speaker.next(h[0, -1]).softmax(0), memory


def foresee(speaker: Speaker, call: list, memory: Any = None) -> Foreseen:
    """Dream the answer to a call, token by token, the likeliest each time."""
    chances, asked = heard(speaker, to_tokens(line_of(call)), memory)
    tokens, confidence, failure, memory = [], 1.0, float(chances[ERROR]), asked  # an answer's first token says what kind it is
    while len(tokens) < LONGEST and tokens[-1:] != [END]:
        tokens.append(int(chances.argmax()))
        confidence *= float(chances.max())
        chances, memory = heard(speaker, tokens[-1:], memory)
    return Foreseen(to_line(tokens), confidence, failure, asked)


# %% [markdown]
# ### Does it know the office?
#
# Four questions to traces that it has never seen. **How often is the whole answer right**, tool by tool? **Is its confidence honest**: of the answers that it gives 90 %, are 90 % right? **Where does it drift**: in traces four times as long as those of the training, and when its own answers are fed back to it, as in a dream? And **can it guard**: a payment beyond the balance, a second booking of an hour, a deletion of what is not there shall be held back before they are sent.
#
# **Predict:** which tool is the hardest?

# %% tags=["define", "extra"]
GUARDED = "pay", "book", "delete"  # calls that do harm when they fail


def held_back(call: list, seen: Foreseen, limit: float) -> bool:
    """The guard: a guarded call is not sent if its dream fails with more than the probability `limit`."""
    return call[0] in GUARDED and seen.failure > limit


def retold(speaker: Speaker, trace: Trace, told: int) -> list[dict]:
    """Each call of a trace foreseen, a line for each. After the first `told` calls the model hears the true answers, after the others its own."""
    memory, lines = None, []
    for number, (call, answer) in enumerate(trace):
        seen, truth = foresee(speaker, call, memory), line_of(answer)
        lines.append({"call": number + 1, "tool": TOOL_OF[call[0]], "asked": call[0], "right": int(seen.line == truth), "confidence": round(seen.confidence, 4),
                      "failure": round(seen.failure, 4), "fails": int("error" in answer)})  # fmt: skip
        _, memory = heard(speaker, to_tokens(truth if number < told else seen.line), seen.memory)
    return lines


def try_words(progress: Progress, speaker: Speaker, *, seed: int, traces: int) -> dict:
    """Traces that were never trained on, retold: `lines`, of as long ones as in training, of four times as long ones, and of ones in which it hears its own answers to the last ten."""
    luck = np.random.default_rng([seed, 1])
    kinds = {"as long": (traces, CALLS, CALLS), "four times as long": (traces // 4, 4 * CALLS, 4 * CALLS), "last ten alone": (traces, CALLS, CALLS - 10)}
    return {
        "lines": [
            {"traces": kind} | line
            for kind, (count, calls, told) in kinds.items()
            for _ in range(count)
            for line in retold(speaker, random_trace(luck, calls), told)
        ]
    }


# %% tags=["run", "extra"]
words_lines, words_log = [], []
if "words" in live:
    words_how = TrainSettings(learning_rate=0.015, batch=8 if tiny else 32, steps=20 if tiny else 4_000)
    words_stage = keep(train_speaker, name="words", how=words_how, seed=settings.seed)
    words_log = [
        {"step": step, "loss": round(loss, 4), "seconds": round(words_stage.seconds, 1)}
        for step, loss in zip(*(words_stage.result["log"][name] for name in ("step", "loss")))
    ]
    speaker = frozen(Speaker(), words_stage.result)
    words_lines = keep(try_words, speaker, after=(words_stage,), name="words-tried", seed=settings.seed, traces=8 if tiny else 200).result["lines"]
words_table, words_training = table_of("words", words_lines), table_of("words_training", words_log)
if len(words_table):
    print(
        f"{words_training['seconds'].iloc[0]:.0f} s of training; loss {words_training['loss'].iloc[0]:.2f}, at the end {words_training['loss'].iloc[-5:].mean():.3f} nats a token"
    )
    words_of = {kind: rows for kind, rows in words_table.groupby("traces", sort=False)}
    for words_kind, words_rows in words_of.items():
        words_said, words_true, words_gap = reliability(*(torch.tensor(words_rows[name].to_numpy()) for name in ("confidence", "right")))
        words_asks = 100 * words_rows.groupby("asked")["right"].mean()
        print(
            f"{words_kind}: {100 * words_rows['right'].mean():.1f} % of {len(words_rows):,} whole answers right, calibration error {words_gap:.3f}; hardest call: {words_asks.idxmin()}, {words_asks.min():.1f} %"
        )
    words_right = 100 * words_table.pivot_table(index="traces", columns="tool", values="right", sort=False)
    display(words_right.assign(all=100 * words_table.groupby("traces")["right"].mean()).round(1))

# %% alt="Left: confidence against the share of right answers. Middle: right answers along long traces and along a dream. Right: dangerous against harmless calls held back." tags=["run", "extra"]
if len(words_table):
    words_curves, words_by_call, words_dots = {}, {}, {"_honest": ([0, 1], [0, 1], "k:")}
    for (words_name, words_lived), words_style in zip(words_of.items(), ("-", "--", "-.")):
        words_pair = reliability(*(torch.tensor(words_lived[name].to_numpy()) for name in ("confidence", "right")))[:2]
        words_asked = words_lived[words_lived["asked"].isin(GUARDED)]
        words_bad, words_good = (words_asked["failure"][words_asked["fails"] == kind].to_numpy() for kind in (1, 0))
        words_limits = np.unique(np.concatenate([[0.0], words_asked["failure"], [1.0]]))[::-1]
        words_shares = [[100 * np.mean(part > limit) if len(part) else math.nan for limit in words_limits] for part in (words_good, words_bad)]
        words_mean = 100 * words_lived.groupby("call")["right"].mean().rolling(4, min_periods=1).mean()
        words_by_call[words_name] = (words_mean.index, words_mean, words_style)
        if words_name != "last ten alone":
            words_dots[words_name], words_curves[words_name] = (*words_pair, f"o{words_style}"), (*words_shares, words_style)
            for words_limit in (0.5, 0.1):
                words_held = [100 * np.mean(part > words_limit) if len(part) else math.nan for part in (words_bad, words_good)]
                print(
                    f"{words_name}: held back where failure is likelier than {words_limit}: {words_held[0]:.1f} % of {len(words_bad)} that fail, {words_held[1]:.1f} % of {len(words_good)} harmless ones"
                )
    plot(
        {"lines": words_dots, "xlabel": "confidence", "ylabel": "share of right answers", "title": "Calibration"},
        {"lines": words_by_call, "xlabel": "call", "ylabel": "whole answers right (%)", "ylim": (80, 101), "title": "Drift (mean of four calls)"},
        {"lines": words_curves, "xlabel": "harmless calls held back (%)", "ylabel": "failing calls held back (%)", "xlim": (-0.5, 20), "ylim": (50, 102), "title": "The guard"},
        size=(4.6, 3.6),
    )  # fmt: skip
    words_wrong = words_of["as long"][words_of["as long"]["right"] == 0]
    print(
        f"as long: {(words_wrong['confidence'] < 0.9).sum()} of {len(words_wrong)} wrong answers have a confidence below 0.9, as {(words_of['as long']['confidence'] < 0.9).sum()} of all have; {(words_wrong['asked'] == 'get').sum()} are answers to get"
    )
    for words_name in ("as long", "four times as long"):
        words_whole = words_of[words_name].assign(trace=(words_of[words_name]["call"] == 1).cumsum()).groupby("trace")["right"].min()
        print(f"{words_name}: {100 * words_whole.mean():.0f} % of {len(words_whole)} traces are right throughout")
    words_late = {
        (name, first): words_of[name][words_of[name]["call"].between(first, last)]["right"].mean()
        for name, first, last in (("last ten alone", 8, 16), ("as long", 8, 16), ("four times as long", 1, 16), ("four times as long", 49, 64))
    }
    print("; ".join(f"{name}, from call {first}: {100 * share:.1f} %" for (name, first), share in words_late.items()))

# %% [markdown]
# After 146 seconds of training, 98.7 % of 3,200 whole answers are right, on traces that it has never seen. Account, counter, converter and list come to 99.7 % and more, the calendar to 99.0 %. **The store is the hardest**, with 95.3 %: of the answers to `get`, 84.8 % are right. There it must find again one of nine digits, under one of three keys, that was said once, up to fifteen calls ago.
#
# **Its confidence is honest**: the calibration error is 0.005. Of the 41 wrong answers 39 are among the 117 with a confidence below 0.9.
#
# **It drifts with length.** In traces four times as long as those of the training, 98.4 % of the first sixteen answers are right and 91.8 % of the last sixteen. There the calendar is the hardest tool (85.7 %), and the calibration error is 0.013. **That it drifts by dreaming we could not see**: from the eighth call on, 98.3 % are right if it hears its own answers, 98.1 % if it hears the true ones (in other traces). Our explanation, not measured: what changes the office is the *call*, and the calls are real in both cases. A pole's dream has no such anchor: each prediction is made from the last one. But hardly any wrong answer was fed back here; after one the model may well be worse.
#
# **The guard works** as long as the traces are as long as in training. If a call is held back where its failure is likelier than one half, 99.4 % of the 357 that fail are never sent, at the price of 0.2 % of the harmless ones. In the long traces it is 92.4 %, for 1.9 %; at a limit of one tenth, 96.7 % for 6.5 %.
#
# <details><summary><b>Exercise 13.</b> Suppose an agent plans in such dreams, and each foreseen answer is right with 98.7 %, independently of the others. How long may a plan be before it is more likely wrong somewhere than right throughout? And what is wrong with the supposition? (Solution)</summary>
#
# 0.987ⁿ falls below ½ at n = 53 calls. Two things are wrong with it. Errors come in clusters (32 of the 41 are answers to `get`: who has lost what is under a key is wrong about it again), so more traces of sixteen calls are right throughout than the power says: 85 % instead of 81 %. But the 98.7 % belongs to short traces. Of the traces of 64 calls 28 % are right throughout, where the power says 43 %.
# </details>
#
# ### And a large one?
#
# Word2World (arXiv:2512.18832) made large language models into such worlds: it trained Qwen 2.5 7B and Llama 3.1 8B on tool calls of StableToolBench. They are on the Hugging Face hub (`X1AOX1A/WorldModel-StableToolbench-Qwen2.5-7B`, Apache 2.0, and `…-Llama3.1-8B`, under Llama's licence), and so are conversions of others' making for llama.cpp (GGUF). A file quantised to four or five bits has 4 to 6 GB, and is downloaded only if you name it below. It would fit a T4, but `pip install xllamacpp` brings the version for the CPU; see its page for the one for CUDA. Then both models get the same question, a dozen times: six calls with their answers, and what is the seventh answer? The large one is told the rules of our office in words; it was never trained on it, and the small one on nothing else. We have not run the large ones; the tests ask a tiny file, through the same code.

# %% cellView="form" tags=["define", "extra"]
# @title A world model in GGUF: download, load, ask
RULES = """You are an office with six tools. Answer each call, a JSON list, with one JSON object and nothing else. At first the account holds 5, all else is empty.
["pay", n]: take n out, {"balance": what is left}, or {"error": "overdraft"}. ["earn", n]: put n in, {"balance": what is there}; the account holds 9 at most.
["book", hour]: {"booked": hour}, or {"error": "taken"}. ["cancel", hour]: {"free": hour}, or {"error": "free"} if it was not booked.
["put", key, value]: {"stored": key}. ["get", key]: {"value": value}. ["delete", key]: {"deleted": key}. The last two: {"error": "missing"} if nothing is stored there.
["add", item]: put it on the list, {"open": item}. ["strike", item]: {"done": item}, or {"error": "not open"}.
["count", n]: a counter from 0 goes up by n and after 9 begins again at 0, {"count": where it stands}. ["convert", n, unit]: km to metres, hours to minutes, kg to grams, {"is": number}.
Keys: red, green, blue; items: bread, milk, salt. An argument outside of 1 to 9 (hours: 1 to 6, steps of the counter: 1 to 3) or unknown: {"error": "bad argument"}."""


def open_gguf(file: str) -> Any:
    """A llama.cpp server of a GGUF file: a path, or "owner/name/file.gguf" on the Hugging Face hub (several GB). A sentence and None where it can't be had."""
    try:
        import xllamacpp

        path = file if Path(file).exists() else hub_file(file)
        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel, params.verbosity = str(path), 4096, 1, 0
        return xllamacpp.Server(params)
    except Exception as error:
        print(f"{file} can't be used ({type(error).__name__}: {str(error)[:200]}). It needs pip install xllamacpp huggingface_hub, and room for the file.")


def hub_file(file: str) -> str:
    """Download "owner/name/file.gguf" from the hub, once."""
    from huggingface_hub import hf_hub_download

    owner, name, rest = file.split("/", 2)
    return hf_hub_download(f"{owner}/{name}", rest)


def ask_gguf(server: Any, trace: Trace, call: list) -> tuple[str, float, float]:
    """The answer of a large model to a call, given a trace: its line (written as ours are, if it is JSON), the probability of what it wrote, and seconds."""
    talk = [{"role": "system", "content": RULES}]
    talk += [{"role": role, "content": line_of(said).strip()} for pair in trace for role, said in zip(("user", "assistant"), pair)]
    begin = time.perf_counter()
    said = server.handle_chat_completions(
        {"messages": [*talk, {"role": "user", "content": line_of(call).strip()}], "max_tokens": 24, "temperature": 0, "logprobs": True}
    )
    choice = said["choices"][0]
    line = choice["message"]["content"].strip() + "\n"
    with contextlib.suppress(ValueError):
        line = line_of(json.loads(line))
    return line, math.exp(sum(token["logprob"] for token in choice["logprobs"]["content"])), time.perf_counter() - begin


def try_gguf(server: Any, speaker: Speaker, seed: int, count: int = 12) -> list[dict]:
    """A dozen calls with known answers, asked of both models after the same six calls: a line each."""
    luck, lines = np.random.default_rng([seed, 2]), []
    for _ in range(count):
        *before, (call, answer) = random_trace(luck, 7)
        _, memory = heard(speaker, [token for pair in before for said in pair for token in to_tokens(line_of(said))])
        small, (large, confidence, seconds) = foresee(speaker, call, memory), ask_gguf(server, before, call)
        line = {"call": line_of(call).strip(), "true": line_of(answer).strip(), "small": small.line.strip(), "its confidence": round(small.confidence, 3)}
        lines.append(line | {"large": large.strip(), "large's confidence": round(confidence, 3), "seconds": round(seconds, 1)})
    return lines


# %% cellView="form" tags=["run", "extra"]
# @title Ask a large one? (owner/name/file.gguf on the hub: 4 to 6 GB; empty: no)
GGUF = os.environ.get("WM_GGUF", "")  # @param {type:"string"}
gguf_server = open_gguf(GGUF) if GGUF and "words" in live else None
if gguf_server is not None:
    gguf_table = pandas.DataFrame(try_gguf(gguf_server, speaker, settings.seed))
    display(gguf_table)
    print(
        f"right: small {(gguf_table['small'] == gguf_table['true']).sum()}, large {(gguf_table['large'] == gguf_table['true']).sum()} of {len(gguf_table)}; they agree on {(gguf_table['small'] == gguf_table['large']).sum()}"
    )
else:
    print("no large model was asked")

# %% [markdown]
# ### What carries over, and what does not
#
# **What carries over from pixels:** the score, that is, how likely the model found what the world then did, and whether its confidence deserves its name. The guard: dream first, and hold back what the dream is sure to regret. And a drift: here with the length of the story, although each true answer is heard.
#
# **What does not:** physics multiplies a small error; words are right or wrong, and a wrong one can leave everything else right. M is a little wrong everywhere, the cousin seldom and wholly. Looking is dear for a robot that is falling; here one `get` brings certainty back. And our office hides nothing: its state follows from the calls that the model has read. A real tool's answer also depends on other users, the clock and the web. There nobody can be sure, and a good model's confidence must say so.

# %% tags=["run"]
print(f"{(time.time() - began) / 60:.0f} minutes since the first cell")

# %% [markdown]
# ## 16 · What was shown, and where to go
#
# **Shown.** How the three parts work together, what V and M know about the true state (the probes), how fast a dream drifts from reality (open loop), and what the controller reaches in the real environment (part 8).
#
# **Not shown.** That this works for harder worlds. CartPole is deterministic, its background is uniform (which makes the shift and the mirror image exact), and random play covers all angles. The true state was used for measurements and baselines only, but we did look at those measurements, and at real returns, on other seeds while choosing the settings, and, with earlier settings, on this one. And one seed stands behind all of it.
#
# ### Things to try
#
# Each is one override (`WM_OVERRIDES`) and retrains only what depends on it. We have not run them for you.
#
# 1. `c.horizon=60`: dreams twice as long. Is C better, or only later?
# 2. `c.growing=0`: C is searched in the lawful axes alone. How far does the cart stray?
# 3. `c.temperature=1`: noise where M doubts. What becomes of the search?
# 4. `v.law=0`: V without the shift law. What do the probe and the open loop say?
# 5. `v.latents=8`: is there room for everything that C needs?
# 6. `m.context=2`: M reads only two real steps before it is asked. What becomes of $h$?
# 7. `collect.episodes=100`: two minutes of real life become half a minute. Which part suffers first?
#
# ### Troubleshooting
#
# | symptom | what to do |
# |---|---|
# | CUDA out of memory | `v.batch=128`, or `m.copies=4` |
# | Colab disconnected | run all again: finished stages load, the interrupted one goes on from its last save (tick `USE_GOOGLE_DRIVE`, because Colab deletes its own disk) |
# | no display | none is needed; run the cell "Imports" before anything else imports gymnasium |
# | "… could not be saved" | free some disk space, or set `WM_RUN_FOLDER` to a folder of yours |
# | something old seems to be used | it is not: a stage's key contains its settings and its code. To start over all the same, delete `runs/` |
#
# ### Glossary
#
# | word | meaning |
# |---|---|
# | h | M's memory: what has happened so far, as far as it matters |
# | rollout, dream | a sequence of steps; a dream is one inside M |
# | teacher forcing | training a sequence model on real inputs at every step |
# | open loop | prediction without looking |
# | τ | temperature: scales the noise in a dream |
# | posterior | the encoder's $q(z \mid x)$: what z may be, given the picture |
# | R² | share of a quantity's variance that a reading explains |
# | rms | root of the mean square: the usual size of an error |
# | bootstrap | an interval from drawing again and again from the measured values themselves |
# | Pearson, Spearman | correlation of two quantities, and of their ranks |
# | whitening | turning and scaling axes so that the data are uncorrelated, with variance 1 |
# | KL | Kullback–Leibler divergence: how many nats one distribution is off from another |
#
# ### References
#
# - D. Ha, J. Schmidhuber. *World Models.* arXiv:1803.10122; NeurIPS version: *Recurrent World Models Facilitate Policy Evolution*, arXiv:1809.01999.
# - D. P. Kingma, M. Welling. *Auto-Encoding Variational Bayes.* arXiv:1312.6114.
# - O. Rybkin, K. Daniilidis, S. Levine. *Simple and Effective VAE Training with Calibrated Decoders.* ICML 2021.
# - G. E. Hinton, A. Krizhevsky, S. D. Wang. *Transforming Auto-encoders.* ICANN 2011.
# - M. Seitzer, A. Tavakoli, D. Antic, G. Martius. *On the Pitfalls of Heteroscedastic Uncertainty Estimation with Probabilistic Neural Networks.* ICLR 2022.
# - S. Hochreiter, J. Schmidhuber. *Long Short-Term Memory.* Neural Computation, 1997.
# - H. Hotelling. *Relations Between Two Sets of Variates.* Biometrika, 1936.
# - A. van den Oord, Y. Li, O. Vinyals. *Representation Learning with Contrastive Predictive Coding.* arXiv:1807.03748.
# - N. Hansen, A. Ostermeier. *Completely Derandomized Self-Adaptation in Evolution Strategies.* Evolutionary Computation, 2001.
# - Y. Li, H. Wang, J. Qiu et al. *From Word to World: Can Large Language Models be Implicit Text-based World Models?* arXiv:2512.18832.
# - J. Richens, D. Abel, A. Bellot, T. Everitt. *General agents contain world models.* arXiv:2506.01622. (Not used here: why an agent that can reach many goals must hold such a model.)
