"""Load the notebook's definitions, and nothing that runs, as a module that tests can import from."""

import json
import linecache
import os
import sys
import tempfile
import types
from pathlib import Path

import pytest

# The notebook itself is a test too: nbval runs every cell in the smallest profile, from nothing.
os.environ.setdefault("WM_PROFILE", "smoke")
os.environ.setdefault("WM_RUN_FOLDER", tempfile.mkdtemp(prefix="world-models-"))

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "world_models_cartpole.ipynb"


def load_notebook(name: str = "notebook", edit=lambda source: source) -> types.ModuleType:
    """A module made of the cells tagged `define`; `edit` may change a cell's source first."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    for number, cell in enumerate(json.loads(NOTEBOOK.read_text())["cells"]):
        if cell["cell_type"] == "code" and "define" in cell["metadata"].get("tags", []):
            source = edit("".join(cell["source"]))
            filename = f"<{name} cell {number}>"
            # The stage keys are made of source code, so it must be there to be read.
            linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
            exec(compile(source, filename, "exec"), module.__dict__)
    return module


@pytest.fixture(scope="session")
def nb() -> types.ModuleType:
    """The notebook's definitions, on the CPU."""
    module = load_notebook()
    module.DEVICE = module.torch.device("cpu")
    return module


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
    return nb.Memory(episodes, nb.make_settings("smoke").v.max_shift, nb.DEVICE)


@pytest.fixture
def run_folder(nb, tmp_path):
    """An empty place for stages."""
    nb.RUN_FOLDER = tmp_path
    return tmp_path
