"""For nbval, which executes the notebook itself: the smallest profile. For the other tests: the
notebook's definitions as a module."""

import __future__

import atexit
import json
import linecache
import multiprocessing
import os
import shutil
import sys
import tempfile
import types
from pathlib import Path

import cloudpickle
import pytest
from traitlets.config import Config

os.environ.setdefault("TQDM_DISABLE", "1")

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "world_models_cartpole.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
SMALLEST = {
    "WM_PROFILE": "smoke",
    "WM_ROADS": "none",
    "WM_OVERRIDES": "evaluate.remedy_seeds=0",
    "WM_NO_WIDGETS": "1",
    "TQDM_DISABLE": "1",
}
OF_THE_USER = (
    "WM_OUT_FOLDER",
    "WM_USE_PRETRAINED",
    "WM_GGUF",
    "MPLBACKEND",
)  # what else the notebook would follow


def own_sockets() -> Config:
    """Settings of a kernel whose sockets are files of its own: kernels that start in the same
    instant may pick the same port. (Windows knows ports only.)"""
    folder = tempfile.mkdtemp(prefix="kernel-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Config(
        {} if os.name == "nt" else {"KernelManager": {"transport": "ipc", "ip": f"{folder}/socket"}}
    )


def pytest_configure(config: pytest.Config) -> None:
    """What every kernel of this session finds in its environment; all of them share one run folder,
    so that nothing is trained twice."""
    for name in OF_THE_USER:
        os.environ.pop(name, None)
    os.environ.update(SMALLEST, WM_RUN_FOLDER=tempfile.mkdtemp(prefix="world-models-"))
    if "WM_START_METHOD" in os.environ:  # as on a system where processes start in another way
        multiprocessing.set_start_method(os.environ["WM_START_METHOD"], force=True)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave nothing behind."""
    shutil.rmtree(os.environ["WM_RUN_FOLDER"], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """nbval waits 5 s for each message of a cell that is done, and no option changes that
    (computationalmodelling/nbval#151): too little on a busy machine.

    Tables are compared as text: each version of pandas writes its own HTML."""
    for item in items:
        if hasattr(item, "output_timeout"):
            item.output_timeout = 120
            item.parent.skip_compare = (*item.parent.skip_compare, "text/html")


def source_of(cell: dict) -> str:
    """A cell's source as one string."""
    return "".join(cell["source"])


def tagged(tag: str) -> list[dict]:
    """The code cells with this tag, in order."""
    return [
        cell
        for cell in CELLS
        if cell["cell_type"] == "code" and tag in cell["metadata"].get("tags", [])
    ]


def load_notebook(name: str = "notebook") -> types.ModuleType:
    """A module made of the cells tagged `define`."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    cloudpickle.register_pickle_by_value(module)  # no other process could import it
    for number, cell in enumerate(tagged("define")):
        source = source_of(cell)
        filename = f"<{name} cell {number}>"
        # For tracebacks, as in a kernel.
        linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
        flags = __future__.annotations.compiler_flag  # a kernel keeps them from cell to cell
        exec(compile(source, filename, "exec", flags), module.__dict__)
    module.DEVICE, module.PRETRAINED = module.torch.device("cpu"), {}
    module.ROOM = module.Room()
    return module


@pytest.fixture(scope="session")
def nb() -> types.ModuleType:
    """The notebook's definitions, on the CPU."""
    return load_notebook()


@pytest.fixture(autouse=True)
def own_keys(nb):
    """A test that loads the notebook's definitions once more leaves the reducers of keys as they
    were: one table per process holds them."""
    from datasets.utils._dill import Pickler

    reducers = dict(Pickler.dispatch)
    yield
    Pickler.dispatch.update(reducers)


@pytest.fixture(scope="session")
def smoke(nb):
    """The settings of the smoke profile."""
    return nb.make_settings("smoke")


@pytest.fixture(scope="session")
def episodes(nb):
    """A few real random episodes."""
    return nb.play(nb.random_policy, nb.seeds_for("random", 0, 6), 2)


@pytest.fixture(scope="session")
def memory(nb, episodes):
    """Those episodes as a memory, with room for the shifts of the settings."""
    return nb.Memory(episodes, 4, nb.DEVICE)


@pytest.fixture
def world(nb, memory):
    """A small random M with codes that need no V, in two copies."""
    nb.torch.manual_seed(0)
    m = nb.M(6, 16).eval().requires_grad_(False)
    for part in (m.change, m.done, m.log_var):
        nb.nn.init.normal_(part.weight, std=0.3)
    mu = nb.torch.cumsum(0.1 * nb.torch.randn(2, len(memory), 6), 1)
    flags = nb.torch.zeros(2, len(memory.lengths), dtype=bool)
    codes = nb.Codes(
        mu,
        nb.torch.full_like(mu, -4.0),
        nb.torch.stack([memory.actions, 1 - memory.actions]),
        flags.long(),
        flags,
    )
    codes.mirror[1] = True
    return nb.World(None, m, memory, codes, 4)


@pytest.fixture
def run_folder(nb, tmp_path, monkeypatch):
    """An empty place for stages."""
    monkeypatch.setattr(nb, "RUN_FOLDER", tmp_path, raising=False)
    return tmp_path
