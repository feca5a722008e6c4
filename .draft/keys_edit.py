"""Issue 38, part 2 of the notebook anew: keys by Hasher. Run once on the notebook, then ruff format; tests follow (see NOTES.md)."""

import sys

sys.path.insert(0, ".draft")
from nbedit import Book

book = Book()

FILES = '''# @title Files, whole or not at all; files of our own run; switches
from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = "your-name/world-models-cartpole"  # the notebook's public home, as owner/name
UNFINISHED = "unfinished-"  # how the name of what is still being written begins


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """The name under which to write a file or a folder, inside a `with`. Afterwards all of it is
    `path`; after an error, or when stopped, nothing is. RuntimeError: the disk is full, say."""
    side = path.with_name(f"{UNFINISHED}{os.getpid()}-{time.time_ns()}")  # each writer's own
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield side
        try:
            side.replace(path)
        except OSError:
            if not path.is_dir():  # else another kernel was faster
                raise
    except OSError as error:
        raise RuntimeError(
            f"{path} could not be saved ({error}). Free some disk space, or set WM_RUN_FOLDER to "
            "another folder, then run again."
        ) from error
    finally:
        shutil.rmtree(side, ignore_errors=True) if side.is_dir() else side.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file: all of it or nothing, also when two kernels write at once."""
    with whole(path) as side:
        side.write_bytes(content)


def usable_folder(folder: Path, variable: str = "WM_RUN_FOLDER") -> Path:
    """The folder (~ is the home folder), made if need be, and tried out. RuntimeError: it can't be
    used; the sentence says what to do."""
    try:
        folder = folder.expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError) as error:  # RuntimeError: whose home is ~somebody?
        raise RuntimeError(
            f"{folder} can't be used ({error}). Set {variable} to a folder of yours, then run this "
            "cell again."
        ) from error
    return folder


def asset(name: str) -> Path | None:
    """A file that our own run left in `assets/`: beside this notebook, or fetched once from the
    repository. None, and a sentence, where it can't be had."""
    path = Path("assets") / name
    if path.exists():
        return path
    fetched = Path(os.environ.get("WM_RUN_FOLDER", "runs")).expanduser() / path
    home = f"https://github.com/{REPOSITORY}"
    try:
        if not fetched.exists():
            with urllib.request.urlopen(f"{home}/raw/main/{path.as_posix()}", timeout=10) as answer:
                content = answer.read()
            write_whole(fetched, content)
        return fetched
    except (OSError, RuntimeError):
        print(
            f"{path.as_posix()} is not beside this notebook, and could not be fetched: it lies in "
            f"{home}, if at all"
        )
    return None


def switch(name: str) -> bool:
    """An environment variable that is on or off. ValueError: it says something else."""
    said = os.environ.get(name, "").strip().lower()
    if said not in ("", "1", "true", "yes", "on", "0", "false", "no", "off"):
        raise ValueError(f"{name}={said!r}: write 1, true, yes or on; or 0, false, no or off")
    return said in ("1", "true", "yes", "on")
'''

DIGESTS = '''# @title What a stage depends on
import types

from datasets.fingerprint import Hasher
from datasets.utils._dill import pklregister
from torch.utils.weak import WeakTensorKeyDictionary

QUIET = ("workers", "label")  # settings that change how a stage works, not what it computes
DIGESTS = WeakTensorKeyDictionary()  # tensor -> its version, and the digest of its content
CODE = """code consts names varnames freevars cellvars flags argcount posonlyargcount
kwonlyargcount exceptiontable""".split()


@pklregister(types.CodeType)
def save_code(pickler: Any, code: types.CodeType) -> None:
    """Of code counts what it does, not where it stands or how it is laid out."""
    parts = tuple(getattr(code, f"co_{part}", b"") for part in CODE)
    pickler.save_reduce(types.CodeType, parts, obj=code)


@pklregister(frozenset)
def save_frozenset(pickler: Any, values: frozenset) -> None:
    """Of a set counts what is in it: each kernel has another order."""
    pickler.save_reduce(frozenset, (sorted(map(Hasher.hash, values)),), obj=values)


@pklregister(nn.Parameter)
@pklregister(Tensor)
def save_tensor(pickler: Any, tensor: Tensor) -> None:
    """Of a tensor counts its content, not where it lies. It is read once, and again only after it
    was changed."""
    version, digest = DIGESTS.get(tensor, (-1, ""))
    if version != tensor._version:
        content = tensor.detach().cpu().contiguous()
        kind = f"{content.dtype} {tuple(content.shape)}".encode()
        digest = Hasher.hash_bytes([kind, content.view(-1).view(torch.uint8).numpy()])
        DIGESTS[tensor] = tensor._version, digest
    pickler.save_reduce(str, (digest,))


@pklregister(torch.device)
def save_device(pickler: Any, device: torch.device) -> None:
    """Where something is computed doesn't count."""
    pickler.save_reduce(str, ())


@pklregister(type(BaseModel))
def refuse(pickler: Any, kind: type) -> None:
    """Classes of settings are others in each kernel."""
    raise TypeError(f"{kind.__name__} is a class of settings: hand over its values")


def stage_key(function: Callable, *inputs: Any, **settings: Any) -> str:
    """Twelve hexadecimal digits that change with the code of a function (at any depth), the content
    of its inputs and its settings. TypeError: one of them can't be part of a key."""
    named = {"the code": function} | {f"input {k}": value for k, value in enumerate(inputs)}
    digests = {}
    for name, value in (named | settings).items():
        value = value.model_dump(mode="json") if isinstance(value, Branch) else value
        try:
            digests[name] = "" if name in QUIET else Hasher.hash(value)
        except Exception as error:
            raise TypeError(
                f"{name} of {function.__name__} can't be part of a key ({error})"
            ) from error
    return Hasher.hash(digests)[:12]
'''

STAGES = '''# @title Stages: finished work stays finished
import hashlib
import io
import json


def save(value: Any, seconds: float, path: Path) -> None:
    """Write tensors, numbers, strings, lists and dicts, and the seconds that they took."""
    torch.save({"value": value, "seconds": seconds}, file := io.BytesIO())
    write_whole(path, file.getvalue())


def load(path: Path) -> tuple[Any, float]:
    """What `save` wrote. Tensors and plain values only: a foreign file can't run code here."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    return saved["value"], float(saved["seconds"])


def found(read: Callable[[Path], Any], path: Path) -> Any | None:
    """What `read` finds at a path; None where nothing is. A broken or foreign file is set aside.

    OSError, MemoryError: the disk or the memory failed; the file stays where it is."""
    try:
        return read(path)
    except Exception as error:
        if not path.exists():
            return None
        # PyTorch calls a full memory a RuntimeError.
        failed = isinstance(error, (OSError, MemoryError)) or "allocate memory" in str(error)
        if failed and not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise
        aside = path.with_name(f"{path.name}.unreadable-{time.time_ns()}")
        with contextlib.suppress(OSError):
            path.replace(aside)
        print(
            f"{path.name} could not be used ({type(error).__name__}: {str(error)[:80]}). It was "
            f"set aside as {aside.name}, and is made anew."
        )
        return None


def sweep(folder: Path, older_than: float = 3600.0) -> None:
    """Remove what a killed kernel has left half-written, somewhere in a folder of stages. What is
    younger (s) may be another kernel's work."""
    for left in folder.glob(f"*/{UNFINISHED}*"):
        if time.time() - left.stat().st_mtime > older_than:
            shutil.rmtree(left, ignore_errors=True)
            left.unlink(missing_ok=True) if left.exists() else None


class Progress:
    """The unfinished state of one stage, in the stage's own folder."""

    def __init__(self, folder: Path) -> None:
        """`folder`: where the stage keeps everything of its own."""
        self.path, self.begin = folder / "progress.pt", time.perf_counter()

    def load(self) -> Any | None:
        """The last saved state, or None at a fresh start."""
        state, seconds = found(load, self.path) or (None, 0.0)
        self.begin -= seconds
        return state

    def save(self, state: Any) -> None:
        """Save the state, and the seconds spent so far."""
        save(state, self.seconds(), self.path)

    def seconds(self) -> float:
        """Seconds of work, those before an interruption included."""
        return time.perf_counter() - self.begin


class Stage(NamedTuple):
    """A finished stage."""

    name: str
    folder: Path
    seconds: float
    result: Any


class Store(NamedTuple):
    """How the result of a stage lies on the disk."""

    file: str
    write: Callable[[Any, float, Path], None]
    read: Callable[[Path], tuple[Any, float]]


TENSORS = Store("result.pt", save, load)


def keep(
    function: Callable, *inputs: Any, name: str, store: Store = TENSORS, **settings: Any
) -> Stage:
    """Do a piece of work once; afterwards, take its result from the disk.

    Args:
        function: called as `function(progress, *inputs, **settings)`. It computes and returns:
            tensors and plain values, unless `store` says otherwise.
        inputs, settings: they and all code that the function needs make the key."""
    if name in PRETRAINED:
        print(f"{name}: {PRETRAINED[name].seconds:.0f} s of work, from the pretrained checkpoint")
        return PRETRAINED[name]
    folder = RUN_FOLDER / f"{name}-{stage_key(function, *inputs, **settings)}"
    done = found(store.read, folder / store.file)
    if done is None:
        progress = Progress(folder)
        result = function(progress, *inputs, **settings)
        done = result, progress.seconds()
        store.write(*done, folder / store.file)
        progress.path.unlink(missing_ok=True)
    result, seconds = done
    print(f"{name}: {seconds:.0f} s of work, kept in {folder.name}")
    return Stage(name, folder, seconds, result)
'''

DATA = '''def write_dataset(episodes: list[Episode], seconds: float, folder: Path) -> None:
    """Save episodes as a Hugging Face Dataset with explicit features, one row per episode, with a
    card, a checksum, and the seconds that they took: all of it, or nothing."""
    rows = [
        {**episode._asdict(), "actions": episode.actions.astype(np.int8)} for episode in episodes
    ]
    steps = sum(len(episode.actions) for episode in episodes)
    with whole(folder) as side, tempfile.TemporaryDirectory() as cache:
        # Kept in memory: a file that is still mapped can't be removed on Windows.
        made = datasets.Dataset.from_generator(
            lambda: iter(rows), features=FEATURES, cache_dir=cache, keep_in_memory=True
        )
        made.save_to_disk(str(side))
        about = {"sha256": checksum(side), "seconds": seconds}
        (side / "about.json").write_text(json.dumps(about), encoding="utf-8")
        card = CARD.format(episodes=len(episodes), steps=steps)
        (side / "README.md").write_text(card, encoding="utf-8")


def read_dataset(folder: Path) -> tuple[list[Episode], float]:
    """What `write_dataset` wrote. ValueError: a byte is not as it was written."""
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    if about["sha256"] != checksum(folder):
        raise ValueError("its checksum differs")
    # ... as before: dataset, pictures, others, plain; return [...], float(about["seconds"])


EPISODES = Store("episodes", write_dataset, read_dataset)
'''

RECORD = '''PART = 1000  # episodes that are recorded and kept at a time: an interruption costs one part


def record(
    progress: Progress, policy: Policy, *, seeds: list[int], workers: int, label: str
) -> list[Episode]:
    """The stage in which a policy plays one real episode per seed."""
    return play(policy, seeds, workers, label)


def recorded(policy: Policy, purpose: str, *, episodes: int, seed: int, workers: int) -> Stage:
    """Episodes of a policy on the seeds of one purpose, kept in parts, each a stage of its own."""
    seeds = seeds_for(purpose, seed, episodes)
    how = {"name": purpose.replace(" ", "-"), "store": EPISODES, "workers": workers}
    parts = [
        keep(record, policy, seeds=seeds[first : first + PART], label=purpose, **how)
        for first in range(0, episodes, PART)
    ]
    seconds = sum(part.seconds for part in parts)
    played = [episode for part in parts for episode in part.result]
    return Stage(how["name"], parts[0].folder, seconds, played)
'''

if __name__ == "__main__":
    book.set("define-asset", FILES.rstrip("\n"))
    book.delete("define-usable-folder")
    book.delete("define-plain-source")
    book.insert("text-a-profile-is-a-list-of-changes-to-that-t", "define-save-code", DIGESTS.rstrip("\n"), tags=("define",), form=True)
    book.set("define-stage", STAGES.rstrip("\n"))
    # still to do here: define-checksum (DATA), define-record (RECORD), the run cells, see NOTES.md
    book.save()
