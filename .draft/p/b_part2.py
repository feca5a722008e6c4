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
    workers: int = Field(8, ge=1, le=64, description="environments that run side by side, each in its own process")


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
    context: int = Field(8, ge=2, le=100, description="real steps that M reads before it speaks: at a dream's beginning and in the real world")
    window: int = Field(24, ge=2, le=500, description="steps per training sequence")
    batch: int = Field(64, ge=2, le=65_536, description="sequences per step")
    steps: int = Field(20_000, ge=1, le=10_000_000, description="gradient steps with teacher forcing")


class PracticeSettings(TrainSettings):
    """M's second training, in which it lives on its own predictions."""

    batch: int = Field(128, ge=2, le=65_536, description="sequences per step, half of them the mirror images of the others")
    steps: int = Field(16_000, ge=0, le=10_000_000, description="gradient steps; 0: no practice")
    alone: int = Field(24, ge=1, le=500, description="steps per sequence that M lives on its own predictions")


class CSettings(Branch):
    """C, the controller, and the dreams it learns in."""

    generations: int = Field(300, ge=1, le=1_000_000, description="CMA-ES generations (the recipe's epochs)")
    population: int = Field(32, ge=4, le=10_000, description="candidates per generation")
    rollouts: int = Field(30, ge=1, le=10_000, description="dreams per candidate and generation")
    horizon: int = Field(30, ge=1, le=1_000, description="steps per dream")
    temperature: float = Field(0.0, ge=0.0, le=10.0, description="τ, scales the standard deviation of the noise in dreams")
    mask_threshold: float = Field(0.01, ge=0.0, le=1.0, description="that noise enters where M's variance exceeds this share of a dimension's variance in the data")
    last_worth: float = Field(30.0, ge=0.0, le=10_000.0, description="what surviving a dream in a familiar state is worth, in steps; 0 counts dreamed steps only")
    penalty: float = Field(3.0, ge=0.0, le=1_000.0, description="weight of the last state's squared distance from the recorded data; 0: all are equally familiar")
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
    remedy_seeds: int = Field(2, ge=1, le=100, description="searches for C per remedy, in part 9")


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
        "collect.episodes": 2_000, "v.steps": 4_000, "v.ramp_steps": 3_000, "m.steps": 4_000, "practice.steps": 3_000, "m.copies": 4, "verifier.steps": 1_500,
        "c.generations": 150, "round.episodes": 8, "round.steps": 500, "evaluate.baseline_episodes": 20, "evaluate.good_episodes": 8,
    },
    # Every cell, from nothing, in a few minutes: for tests. Its numbers mean nothing.
    "smoke": {
        "collect.episodes": 40, "v.steps": 30, "v.ramp_steps": 20, "v.batch": 64, "m.steps": 30, "practice.steps": 10, "practice.batch": 16, "m.copies": 2,
        "m.batch": 16, "c.generations": 4, "c.population": 8, "c.rollouts": 6, "c.look_every": 8, "verifier.steps": 20, "verifier.batch": 32,
        "round.episodes": 2, "round.steps": 5, "evaluate.episodes": 4, "evaluate.baseline_episodes": 4, "evaluate.good_episodes": 2, "evaluate.fresh_episodes": 60,
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
        (tree.setdefault(branch, {}) if branch else tree)[leaf] = value
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise ValueError("\n".join(map(in_words, error.errors()))) from None


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
import hashlib
import inspect
import io
import linecache
import textwrap
import tokenize
import types


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


def names_in(code: types.CodeType) -> set[str]:
    """All global names and attributes that some code mentions, inner functions included."""
    return set(code.co_names).union(*(names_in(part) for part in code.co_consts if isinstance(part, types.CodeType)))


def code_of(function: Callable, *others: Any) -> str:
    """All code of this notebook that a function, and other functions or objects, depend on: their own, and that of whatever they name, at any depth.

    Constants are names in capitals. Settings classes don't count (a stage's key holds the values), nor do modules and libraries."""
    scope, found = inspect.unwrap(function).__globals__, {}
    waiting = [function, *(other if hasattr(other, "__qualname__") else type(other) for other in others)]
    while waiting:
        thing = inspect.unwrap(waiting.pop())  # a decorated function, a cached one too, counts as what it wraps
        if getattr(thing, "__module__", None) != scope["__name__"] or thing.__qualname__ in found or thing.__name__.endswith("Settings"):
            continue
        parts = vars(thing).values() if inspect.isclass(thing) else [thing]
        parts = [inspect.unwrap(getattr(part, "__func__", None) or getattr(part, "fget", None) or part) for part in parts]
        codes = [part.__code__ for part in parts if inspect.isfunction(part) and part.__module__ == scope["__name__"]]
        found[thing.__qualname__] = plain_source(thing) or "\n".join([repr(getattr(thing, "__annotations__", "")), *map(bytecode, codes)])
        names = set().union(*map(names_in, codes)) | ({base.__name__ for base in thing.__mro__[1:]} if inspect.isclass(thing) else set())
        for name in sorted(names & scope.keys()):
            if hasattr(scope[name], "__qualname__"):
                waiting.append(scope[name])
            elif name.isupper() and not isinstance(scope[name], (types.ModuleType, Path, torch.device)):
                found[name] = repr(scope[name])
    return "\n".join(f"{name}: {found[name]}" for name in sorted(found))


# %% cellView="form" tags=["define"]
# @title Saving: all of a file, or nothing
import tempfile
import time


def usable_folder(folder: Path) -> Path:
    """The folder, made if need be, and tried out. RuntimeError: it can't be used; the sentence says what to do."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise RuntimeError(f"{folder} can't be used ({error}). Set WM_RUN_FOLDER to a folder of yours, then run this cell again.") from error
    return folder


def save(value: Any, path: Path) -> None:
    """Write tensors, numbers, strings, lists and dicts to `path`: all of it or nothing, also when two kernels write at once. RuntimeError: the disk is full, say."""
    side = None
    try:
        handle, side = tempfile.mkstemp(suffix=".part", dir=usable_folder(path.parent))  # a name of its own for each writer
        with os.fdopen(handle, "wb") as file:
            torch.save(value, file)
        os.replace(side, path)
    except (OSError, RuntimeError) as error:
        if side:
            Path(side).unlink(missing_ok=True)
        raise RuntimeError(f"{path} could not be saved ({error}). Free some disk space, or set WM_RUN_FOLDER to another folder, then run again.") from error


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
        if absent := [name for name in needed if name not in value]:
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
# **The shortcut.** Tick `USE_PRETRAINED`, and V, M and C come from our own run: you see every figure, every dream and the real test within minutes. The checkpoint holds numbers only; a checksum says whether it arrived whole. Knobs of training, such as the horizon, then change only what is still measured.
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
                (usable_folder(folder) / name).write_bytes(answer.read())
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
USE_PRETRAINED = os.environ.get("WM_USE_PRETRAINED", "0") == "1"  # @param {type:"boolean"}
USE_GOOGLE_DRIVE = False  # @param {type:"boolean"}

form = {"m.hidden": HIDDEN_SIZE_OF_M, "c.horizon": DREAM_HORIZON, "c.temperature": DREAM_TEMPERATURE, "collect.episodes": RANDOM_EPISODES, "seed": SEED}
wishes = [f"{name}={value}" for name, value in form.items() if str(value).strip()] + [os.environ.get("WM_OVERRIDES", "")]
settings, DEVICE = make_settings(PROFILE, ",".join(wishes)), torch.device("cuda" if torch.cuda.is_available() else "cpu")
if USE_GOOGLE_DRIVE:  # it outlives a Colab session
    from google.colab import drive

    drive.mount("/content/drive")
home_folder = "/content/drive/MyDrive/world_models_cartpole" if USE_GOOGLE_DRIVE else os.environ.get("WM_RUN_FOLDER", "runs")
RUN_FOLDER = usable_folder(Path(home_folder) / profile_name(PROFILE))
PRETRAINED = find_pretrained(settings) if USE_PRETRAINED else {}
if PRETRAINED:
    settings = make_settings(PROFILE, ",".join([LOOK_AROUND, *wishes]))
torch.set_float32_matmul_precision("high")
datasets.disable_progress_bars()
print(f"profile {profile_name(PROFILE)}, seed {settings.seed}, device {DEVICE.type}, Python {platform.python_version()}, PyTorch {torch.__version__}")
print(f"pretrained: {', '.join(PRETRAINED) or 'nothing'}; {settings.collect.episodes:,} random and {settings.evaluate.episodes} test episodes")

