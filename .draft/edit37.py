import sys
sys.path.insert(0, ".draft")
from nbedit import Book

b = Book()

# --- 4: one home for our own files; switches before the imports -----------------------------------
b.insert("text-world-models-cartpole-from-pixels-solved", "define-asset", '''# @title Files of our own run, and switches
import os
import urllib.request
from pathlib import Path

REPOSITORY = "your-name/world-models-cartpole"  # the notebook's public home, as owner/name


def asset(name: str) -> Path | None:
    """A file that our own run left in `assets/`: beside this notebook, or fetched once from the repository. None, and a sentence, where it can't be had."""
    path = Path("assets") / name
    if path.exists():
        return path
    fetched = Path(os.environ.get("WM_RUN_FOLDER", "runs")).expanduser() / path
    if not fetched.exists():
        home = f"https://github.com/{REPOSITORY}"
        try:
            with urllib.request.urlopen(f"{home}/raw/main/{path.as_posix()}", timeout=10) as answer:
                content = answer.read()
            fetched.parent.mkdir(parents=True, exist_ok=True)
            side = fetched.with_name(f"{fetched.name}.{os.getpid()}")
            side.write_bytes(content)
            side.replace(fetched)
        except OSError:
            print(f"{path.as_posix()} is not beside this notebook, and could not be fetched: it lies in {home}, if at all")
            return None
    return fetched


def switch(name: str) -> bool:
    """An environment variable that is on or off. ValueError: it says something else."""
    said = os.environ.get(name, "").strip().lower()
    if said not in ("", "1", "true", "yes", "on", "0", "false", "no", "off"):
        raise ValueError(f"{name}={said!r}: write 1, true, yes or on; or 0, false, no or off")
    return said in ("1", "true", "yes", "on")
''', tags=["define"], form=True)
b.set("run-title-film", '''# @title The film: what the camera sees, what V redraws, what M dreams
from IPython.display import Image as Picture
from IPython.display import display

title_film = asset("quick_run/film.png")  # of the run whose outputs you see
if title_film:
    display(Picture(data=title_film.read_bytes(), format="png", width=320))''')
b.sub("define-profile-name", '''def switch(name: str) -> bool:
    """An environment variable that is on or off. ValueError: it says something else."""
    said = os.environ.get(name, "").strip().lower()
    if said not in ("", "1", "true", "yes", "on", "0", "false", "no", "off"):
        raise ValueError(f"{name}={said!r}: write 1, true, yes or on; or 0, false, no or off")
    return said in ("1", "true", "yes", "on")


''', "")

b.set("run-began", '''# @title Libraries: what is missing is installed, PyTorch is never touched
import contextlib
import importlib.metadata
import subprocess
import sys
import time

from packaging.requirements import Requirement

began = time.time()
needed = """torch>=2.6 torchvision>=0.21 gymnasium>=1.1 pygame>=2.6 datasets>=4.0 nevergrad>=1.0.12 numpy>=2.0 scipy>=1.15
pandas>=2.2 pillow>=10.0 pydantic>=2.7 matplotlib>=3.9 ipywidgets>=7.7 safetensors>=0.4 tqdm>=4.66""".split()
missing = []
for need in map(Requirement, needed):
    found_version = None
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, KeyError):
        found_version = importlib.metadata.version(need.name)
    if found_version is None or not need.specifier.contains(found_version, prereleases=True):
        missing.append(str(need))
if any(name.startswith("torch") for name in missing):
    raise SystemExit(f"Needed: {', '.join(missing)}. PyTorch and torchvision must be a pair of one build: see https://pytorch.org/get-started")
if missing and subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *missing]).returncode:
    raise SystemExit(f"pip could not install {', '.join(missing)}. In a terminal: {sys.executable} -m ensurepip, then pip; then run this cell again.")
print("missing libraries:", ", ".join(missing) or "none")''')

b.sub("define-contextlib", "import functools\nimport os\nimport platform", "import functools\nimport platform")
b.sub("define-contextlib", "from collections.abc import Callable, Iterator\nfrom pathlib import Path\n", "from collections.abc import Callable, Iterator\n")
b.sub("define-contextlib", '''warnings.filterwarnings("ignore", category=UserWarning, module="pygame")
''', '''warnings.filterwarnings("ignore", category=UserWarning, module="pygame")
if switch("WM_NO_WIDGETS"):  # nobody looks on: no progress bars
    os.environ.setdefault("TQDM_DISABLE", "1")
''')
b.sub("define-contextlib", '''from IPython.display import HTML, display
from IPython.display import Image as Picture
from PIL import Image
''', '''from IPython.display import HTML
from PIL import Image
''')
b.sub("define-contextlib", "from tqdm.auto import tqdm", '''from tqdm import tqdm


def progress_bar(*steps: Any, label: str | None, unit: str, **how: Any) -> tqdm:
    """A bar of text, none without a label. (A bar that is a widget waits for a front end, which a notebook run from a terminal does not have.)"""
    return tqdm(*steps, desc=label, unit=unit, **how | ({} if label else {"disable": True}))''')

# --- environments are closed ----------------------------------------------------------------------
b.sub("run-pole", 'plt.show()', 'plt.show()\npole.close()')
b.sub("define-play", 'tqdm(total=len(seeds), desc=label, unit="episode", disable=label is None) as bar', 'progress_bar(total=len(seeds), label=label, unit="episode") as bar')

# --- settings ---------------------------------------------------------------------------------------
b.sub("define-branch", '''    def but(self, **changes: Any) -> "Branch":
        """A copy with some fields changed."""
        return self.model_copy(update=changes)
''', '''    def but(self, **changes: Any) -> "Branch":
        """A copy with some fields changed. ValueError: a name or a value is not allowed."""
        return checked(type(self), dict(self) | changes)
''')
b.sub("define-branch", '''Width = Annotated[int, Field(ge=1, le=1024)]
Widths = Annotated[tuple[Width, Width, Width, Width], BeforeValidator(lambda text: text.split("-") if isinstance(text, str) else text)]
''', '''def four(widths: Any) -> Any:
    """Four widths, also from text such as 8-16-32-64."""
    widths = widths.split("-") if isinstance(widths, str) else widths
    if isinstance(widths, (list, tuple)) and len(widths) != 4:
        raise ValueError(f"four widths are needed, not {len(widths)}")
    return widths


Width = Annotated[int, Field(ge=1, le=1024)]
Widths = Annotated[tuple[Width, Width, Width, Width], BeforeValidator(four)]
''')
b.sub("define-profile-name", '''    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise ValueError("\\n".join(map(in_words, error.errors()))) from None
''', '''    return checked(Settings, tree)
''')
text = b.source("define-profile-name")
start = text.index("def in_words")
b.set("define-profile-name", text[:start].rstrip() + '''


def checked(kind: type[Branch], values: dict) -> Any:
    """A branch with some values. A ValueError has a line for each that is not allowed."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ValueError("\\n".join(in_words(one, kind) for one in error.errors())) from None


def in_words(error: Any, kind: type[Branch]) -> str:
    """One of pydantic's findings as a sentence: which setting, which value, what is allowed."""
    *branch, leaf = [part for part in error["loc"] if isinstance(part, str)]
    for name in branch:
        kind = kind.model_fields[name].annotation
    name, fields = ".".join([*branch, leaf]), kind.model_fields
    if error["type"] == "extra_forbidden":
        return f"unknown setting {name!r}: the choices are {', '.join('.'.join([*branch, field]) for field in fields)}"
    ends = [str(end) for limit in fields[leaf].metadata for end in (getattr(limit, "ge", None), getattr(limit, "le", None)) if end is not None]
    problem = error["msg"].removeprefix("Value error, ")
    return f"{name} = {error['input']!r} is not allowed: {problem} ({fields[leaf].description}{'; allowed is ' * bool(ends)}{' to '.join(ends)})"
''')

# --- files --------------------------------------------------------------------------------------------
b.sub("define-usable-folder", '''    """The folder, made if need be, and tried out. RuntimeError: it can't be used; the sentence says what to do."""
    try:
        folder.mkdir''', '''    """The folder (~ is the home folder), made if need be, and tried out. RuntimeError: it can't be used; the sentence says what to do."""
    try:
        folder = folder.expanduser()
        folder.mkdir''')
b.sub("define-usable-folder", '    except OSError as error:\n        raise RuntimeError(f"{folder} can\'t be used', '    except (OSError, RuntimeError) as error:  # RuntimeError: whose home is ~somebody?\n        raise RuntimeError(f"{folder} can\'t be used')
b.sub("define-usable-folder", '''def load(path: Path, *needed: str) -> dict | None:
    """What `save` wrote, if it is a dict with the needed names; None where there is nothing usable. A broken or foreign file is set aside."""
''', '''def is_broken(error: Exception) -> bool:
    """Does an error in reading say that the content is broken or gone? Else it is the machine that failed, and the content may well be whole."""
    machine = isinstance(error, (OSError, MemoryError)) or "allocate memory" in str(error)  # PyTorch calls the latter a RuntimeError
    return isinstance(error, (FileNotFoundError, NotADirectoryError)) or not machine


def load(path: Path, *needed: str) -> dict | None:
    """What `save` wrote, if it is a dict with the needed names; None where there is nothing usable. A broken or foreign file is set aside.

    OSError, MemoryError: the disk or the memory failed; the file stays where it is."""
''')
b.sub("define-usable-folder", '''    except Exception as error:
        return set_aside(path, error)
''' if "    except Exception as error:\n        return set_aside(path, error)\n" in b.source("define-usable-folder") else '''    except Exception as error:
        return set_aside(path, error)''', '''    except Exception as error:
        if not is_broken(error):
            raise
        return set_aside(path, error)''')

# --- the checkpoint -------------------------------------------------------------------------------------
b.sub("define-load-checkpoint", '''import urllib.request

from safetensors import safe_open

REPOSITORY = "your-name/world-models-cartpole"  # the notebook's public home, as owner/name
REFERENCE = Path("assets") / "quick_run"  # what the authors' own run left behind
''', '''from safetensors import safe_open

''')
b.sub("define-load-checkpoint", '''def load_checkpoint(path''', '''def finite(text: str) -> float:
    """A number of a JSON text. ValueError: it is not a number, or infinite."""
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is no finite number")
    return value


def load_checkpoint(path''')
b.sub("define-load-checkpoint", '''about = json.loads(file.metadata()["about"])''', '''about = json.loads(file.metadata()["about"], parse_float=finite, parse_constant=finite)''')
b.sub("define-load-checkpoint", '''        results: dict[str, dict] = {name: {} for name in about["seconds"]}
''', '''        seconds = {name: finite(str(value)) for name, value in about["seconds"].items()}
        results: dict[str, dict] = {name: {} for name in seconds}
''')
b.sub("define-load-checkpoint", '''Stage(name, key, path.parent, about["seconds"][name], result)''', '''Stage(name, key, path.parent, seconds[name], result)''')
text = b.source("define-load-checkpoint")
start = text.index("def find_pretrained")
b.set("define-load-checkpoint", text[:start] + '''def find_pretrained(settings: Settings) -> dict[str, Stage]:
    """The stages of the checkpoint of our own run; empty, and a sentence, where it can't be had or used."""
    manifest, checkpoint = (asset(f"quick_run/{name}") for name in ("manifest.json", "checkpoint.safetensors"))
    try:
        if not (manifest and checkpoint):
            raise FileNotFoundError("it is not here")
        wanted = json.loads(manifest.read_text(encoding="utf-8"))["checkpoint_sha256"]
        found = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        if found != wanted:
            raise ValueError(f"its checksum is {found[:12]}…, but the manifest says {wanted[:12]}…")
        return load_checkpoint(checkpoint, settings)
    except (OSError, ValueError, KeyError) as error:
        print(f"The pretrained checkpoint can't be used ({error}). No harm done: the notebook trains its own V, M and C.")
        return {}''')

# --- recording --------------------------------------------------------------------------------------------
b.sub("define-checksum", 'Path(place, "data", "README.md").write_text(card)', 'Path(place, "data", "README.md").write_text(card, encoding="utf-8")')
b.sub("define-checksum", 'Path(place, "data", "sha256").write_text(checksum(Path(place, "data")))', 'Path(place, "data", "sha256").write_text(checksum(Path(place, "data")), encoding="utf-8")')
b.sub("define-checksum", '(folder / "sha256").read_text()', '(folder / "sha256").read_text(encoding="utf-8")')
b.sub("define-record", '''    for name, part in parts.items():
        if not (progress.folder / name).exists():
            write_dataset(play(policy, part, workers, purpose), progress.folder / name, purpose)
''', '''    progress.load()  # the seconds before an interruption count
    for name, part in parts.items():
        if not (progress.folder / name).exists():
            write_dataset(play(policy, part, workers, purpose), progress.folder / name, purpose)
            progress.save(name)
''')
b.sub("define-record", '''            if last_try:
                raise
''', '''            if last_try or not is_broken(error):
                raise
''')

# --- training ------------------------------------------------------------------------------------------------
b.sub("define-choose-precision", '''def fit(model: nn.Module, batch_loss: BatchLoss, settings: TrainSettings, seed: int, progress: Progress, label: str, max_gradient: float = math.inf) -> dict:
    """Train a model in place with Adam for `settings.steps` steps; go on from the last save if there is one. Gradients longer than `max_gradient` are shortened.
''', '''def fit(
    model: nn.Module,
    batch_loss: BatchLoss,
    settings: TrainSettings,
    seed: int,
    progress: Progress,
    label: str,
    max_gradient: float = math.inf,
    precision: torch.dtype = torch.float32,
) -> dict:
    """Train a model in place with Adam for `settings.steps` steps; go on from the last save if there is one. Gradients longer than `max_gradient` are shortened.
''')
b.sub("define-choose-precision", '''    can continue with the very same numbers. Returns `weights`, and `log`: a list per number, one entry every `LOG_EVERY` steps."""
''', '''    can continue with the very same numbers. `precision`: of the loss; one in float16 is scaled. Returns `weights`, and `log`: a list per number, one entry
    every `LOG_EVERY` steps. FloatingPointError: the loss or a weight is not a number any more; then nothing is kept."""
''')
b.sub("define-choose-precision", "enabled=choose_precision(DEVICE) == torch.float16)", "enabled=precision == torch.float16)")
b.sub("define-choose-precision", '''        for name, part in parts.items():
            part.load_state_dict(saved[name])
''', '''        for name, part in parts.items():
            if saved[name]:  # a scaler that was off has saved nothing
                part.load_state_dict(saved[name])
''')
b.sub("define-choose-precision", '''    def train(step: int) -> dict[str, Tensor]:''', '''    def check(values: Tensor, what: str, step: int) -> None:
        """Stop, and forget the training, where some values are not finite."""
        if not values.isfinite().all():
            progress.path.unlink(missing_ok=True)
            raise FloatingPointError(f"{label}: {what} is not a finite number at step {step:,}. A smaller learning rate may help.")

    def train(step: int) -> dict[str, Tensor]:''')
b.sub("define-choose-precision", '''        loss, numbers = batch_loss(generator, step)
        optimizer.zero_grad()
''', '''        loss, numbers = batch_loss(generator, step)
        check(loss, "the loss", step)
        optimizer.zero_grad()
''')
b.sub("define-choose-precision", '''    for step in tqdm(range(first, settings.steps), desc=label, initial=first, total=settings.steps, unit="step"):''', '''    for step in progress_bar(range(first, settings.steps), label=label, initial=first, total=settings.steps, unit="step"):''')
b.sub("define-choose-precision", '''    model.eval()
    return {"weights"''', '''    for weights in model.parameters():
        check(weights, "a weight", settings.steps)
    model.eval()
    return {"weights"''')
b.sub("define-random-views", 'return fit(model, batch_loss, v, seed, progress, "V")', 'return fit(model, batch_loss, v, seed, progress, "V", precision=precision)')
b.sub("define-codes", 'tqdm(range(copies), desc="encode", unit="copy", disable=copies == 1)', 'progress_bar(range(copies), label="encode" if copies > 1 else None, unit="copy")')
b.sub("define-learn", '(bar := tqdm(range(c.generations), desc="C", unit="generation", disable=progress is None))', '(bar := progress_bar(range(c.generations), label="C" if progress else None, unit="generation"))')

# --- the explorer ---------------------------------------------------------------------------------------------
b.set("run-explorer", '''if switch("WM_NO_WIDGETS"):  # no front end listens, and a widget would wait for its answer
    show_code(v, middle, one_knob)
else:
    explorer = widgets.interactive(lambda **turns: show_code(v, middle, one_knob, **turns), **{f"z{j}": widgets.FloatSlider(0, min=-3, max=3) for j in busiest})
    display(explorer)''')
b.sub("run-pool", '''dream_rate, real_rate =''', '''rendered.close()
dream_rate, real_rate =''')

# --- agents meet another number of environments ---------------------------------------------------------------
b.sub("define-agent", '''        if self.stack is None:  # nothing has been seen yet
''', '''        if fresh.all():  # a play begins, perhaps with another number of environments than the last
''')
b.sub("define-agent", "self.world, self.choose, self.stack = world, choose, None\n", "self.world, self.choose = world, choose\n")
b.sub("define-every-second-row", '''        looks = new if self.looked is None else new | ~self.looked  # (W,)
        first, self.second = chosen[:, 0], chosen[:, 1] if self.second is None else torch.where(looks, chosen[:, 1], self.second)
''', '''        looks = new if new.all() else new | ~self.looked  # (W,)
        first, self.second = chosen[:, 0], chosen[:, 1] if new.all() else torch.where(looks, chosen[:, 1], self.second)
''')
b.sub("define-every-second-row", '''        super().__init__(world._replace(context=2 * world.context), choose)
        self.looked = self.second = None
''', '''        super().__init__(world._replace(context=2 * world.context), choose)
''')
b.sub("define-forget-namespaces", '''self.client, self.in_doubt, self.lie, self.stack, self.answers = httpx.Client(base_url=address, timeout=60), in_doubt, lie, None, []''', '''self.client, self.in_doubt, self.lie, self.answers = httpx.Client(base_url=address, timeout=60), in_doubt, lie, []''')
b.sub("define-forget-namespaces", '''        if self.stack is None:
            self.stack''', '''        if fresh.all():
            self.stack''')
b.sub("define-lies", '''self.last = stacks[:, -1:] if self.last is None else np.where(''', '''self.last = stacks[:, -1:] if (steps == 0).all() else np.where(''')
b.sub("define-lies", '''self.kind, self.luck, self.last = LIES.index(kind), np.random.default_rng(0), None''', '''self.kind, self.luck = LIES.index(kind), np.random.default_rng(0)''')

# --- tables ----------------------------------------------------------------------------------------------------
b.sub("define-norm-penalty", 'with path.open("w", newline="") as file:', 'with path.open("w", newline="", encoding="utf-8") as file:')
text = b.source("define-norm-penalty")
start = text.index("def read_table")
b.set("define-norm-penalty", text[:start] + '''def read_table(experiment: str) -> list[dict[str, str]]:
    """The lines of one experiment's table; none, and a sentence, where it can't be had."""
    path = asset(f"experiments/{experiment}.csv")
    if path is None:
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))''')
b.sub("define-table-of", '''    if lines:
        write_table(OUT / f"{experiment}.csv", lines)
    elif not read_table(experiment):
        return pandas.DataFrame()
    return pandas.read_csv((OUT if lines else Path("assets") / "experiments") / f"{experiment}.csv")
''', '''    if lines:
        write_table(path := OUT / f"{experiment}.csv", lines)
    else:
        path = asset(f"experiments/{experiment}.csv")
    return pandas.read_csv(path) if path else pandas.DataFrame()
''')
b.sub("run-framed", '.read_text()', '.read_text(encoding="utf-8")')

# --- part 10 installs nothing unless it is computed --------------------------------------------------------------
b.set("run-roads", '''# @title Which roads are computed now? (auto: all in smoke, else none)
import importlib.util

ROADS = os.environ.get("WM_ROADS", "auto")  # @param ["auto", "none", "engineer", "student", "researcher", "frontier", "words", "all"] {allow-input: true}
roads = {"engineer", "student", "researcher", "frontier", "words"}
tiny = profile_name(PROFILE) == "smoke"  # each road in miniature
asked = {"auto": "all" if tiny else "", "none": ""}.get(ROADS, ROADS)
live = roads if asked == "all" else set(asked.replace(",", " ").split())
if live - roads:
    raise ValueError(f"ROADS = {ROADS!r}: choose auto, none, all, or from {', '.join(sorted(roads))}")
print(f"computed now: {', '.join(sorted(live)) or 'nothing'}")
road_needs = "fastapi uvicorn httpx prometheus-client itsdangerous cloudpickle".split() if "engineer" in live else []
road_missing = [name for name in road_needs if importlib.util.find_spec(name.replace("-", "_")) is None]
if road_missing and subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *road_missing]).returncode:
    raise RuntimeError(f"pip could not install {', '.join(road_missing)}: do it in a terminal, or leave the engineer's road out, then run this cell again.")''')
b.sub("define-past", '''import base64
import secrets

from itsdangerous import BadSignature, TimestampSigner
from safetensors''', '''import base64
import secrets

from safetensors''')
b.sub("define-past", '''        self.signer = TimestampSigner(''', '''        from itsdangerous import TimestampSigner

        self.signer = TimestampSigner(''')
b.sub("define-past", "BadSignature: forged", "itsdangerous.BadSignature: forged")
b.sub("define-ask", '''from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from pydantic''', '''from pydantic''')
b.sub("define-make-app", '''def make_app(driver: Driver, key: bytes) -> FastAPI:
    """The service. `key` signs the tokens: all replicas need the same."""
''', '''def make_app(driver: Driver, key: bytes) -> Any:
    """The service, a FastAPI app. `key` signs the tokens: all replicas need the same."""
    from fastapi import FastAPI, HTTPException, Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from itsdangerous import BadSignature
    from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

''')
b.sub("define-forget-namespaces", '''
import cloudpickle
import httpx

''', '''
''')
b.sub("define-forget-namespaces", '''    forget_namespaces()
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener''', '''    import cloudpickle

    forget_namespaces()
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener''')
b.sub("define-forget-namespaces", '''    end = time.monotonic() + seconds
    while''', '''    import httpx

    end = time.monotonic() + seconds
    while''')
b.sub("define-forget-namespaces", '''        """`lie`: what becomes of the stacks (W, 4, 64, 64) of robots that are `steps` (W,) old, on their way."""
''', '''        """`lie`: what becomes of the stacks (W, 4, 64, 64) of robots that are `steps` (W,) old, on their way."""
        import httpx

''')
b.sub("define-rank-controllers", "c.but(horizon=steps, last_worth=0.0)", "c.but(horizon=steps, last_worth=0.0, temperature=0.0)")

b.save()
