"""Load the notebook's definitions, and nothing that runs, as a module that tests can import from."""

import json
import linecache
import os
import sys
import types
from pathlib import Path

import pytest

os.environ.setdefault("TQDM_DISABLE", "1")

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "world_models_cartpole.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]


def source_of(cell: dict) -> str:
    """A cell's source as one string."""
    return "".join(cell["source"])


def tagged(tag: str) -> list[dict]:
    """The code cells with this tag, in order."""
    return [cell for cell in CELLS if cell["cell_type"] == "code" and tag in cell["metadata"].get("tags", [])]


def load_notebook(name: str = "notebook", edit=lambda source: source, readable: bool = True) -> types.ModuleType:
    """A module made of the cells tagged `define`; `edit` may change a cell's source first; `readable`: Python can look the source up, as in a kernel."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    for number, cell in enumerate(tagged("define")):
        source = edit(source_of(cell))
        filename = f"<{name} cell {number}>"
        if readable:  # the stage keys are made of source code
            linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
        exec(compile(source, filename, "exec"), module.__dict__)
    module.DEVICE, module.PRETRAINED = module.torch.device("cpu"), {}
    return module


@pytest.fixture(scope="session")
def nb() -> types.ModuleType:
    """The notebook's definitions, on the CPU."""
    return load_notebook()


@pytest.fixture(scope="session")
def smoke(nb):
    """The settings of the smoke profile."""
    return nb.make_settings("smoke")


@pytest.fixture(scope="session")
def episodes(nb):
    """A few real random episodes."""
    return nb.play(nb.RandomPolicy(0), nb.seeds_for("random", 0, 6), 2)


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
    flags = nb.torch.zeros(2, len(memory.episodes), dtype=bool)
    codes = nb.Codes(mu, nb.torch.full_like(mu, -4.0), nb.torch.stack([memory.actions, 1 - memory.actions]), flags.long(), flags)
    codes.mirror[1] = True
    return nb.World(None, m, memory, codes, 4)


@pytest.fixture
def run_folder(nb, tmp_path, monkeypatch):
    """An empty place for stages."""
    monkeypatch.setattr(nb, "RUN_FOLDER", tmp_path, raising=False)
    return tmp_path
