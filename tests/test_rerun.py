"""The notebook as people use it: run from nothing in the smallest profile, then any cell again, then with other knobs. One kernel for all of it."""

import os
import random
import re
import tempfile
from pathlib import Path

import nbformat
import pytest
from conftest import NOTEBOOK, ROOT
from nbclient import NotebookClient


class Kernel:
    """A kernel that executes cells of the notebook, in any order."""

    def __init__(self) -> None:
        self.notebook = nbformat.read(NOTEBOOK, 4)
        self.folder = Path(tempfile.mkdtemp(prefix="world-models-rerun-"))
        self.client = NotebookClient(self.notebook, timeout=600, resources={"metadata": {"path": str(ROOT)}})
        self.client.create_kernel_manager()
        self.client.start_new_kernel(
            env=os.environ | {"WM_PROFILE": "smoke", "WM_RUN_FOLDER": str(self.folder), "WM_OVERRIDES": "", "TQDM_DISABLE": "1", "MPLBACKEND": "agg"}
        )
        self.client.start_new_kernel_client()
        self.cells = {cell.id: index for index, cell in enumerate(self.notebook.cells) if cell.cell_type == "code"}
        self.runs = [cell.id for cell in self.notebook.cells if cell.cell_type == "code" and "run" in cell.metadata.tags]

    def run(self, name: str) -> str:
        """Execute one cell; return what it printed, without what tells the time."""
        cell = self.notebook.cells[self.cells[name]]
        self.client.execute_cell(cell, self.cells[name])  # an error in the cell is an error here
        text = "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")
        return re.sub(r"\d+ s of work|\d+ minutes since|[\d,]+ dreamed steps a second.*", "", text)

    def turn(self, overrides: str) -> None:
        """Turn knobs, as the form does; the roads, which hang on the same stages, were walked once and need not be again."""
        self.client.execute_cell(nbformat.v4.new_code_cell(f"import os; os.environ.update(WM_OVERRIDES={overrides!r}, WM_ROADS='none')"), 0)

    def stages(self) -> set[str]:
        """The names of all finished stages, with their keys."""
        return {path.parent.name for path in self.folder.glob("smoke/*/result.pt")}


@pytest.fixture(scope="module")
def kernel():
    """A kernel in which the whole notebook was run once."""
    kernel = Kernel()
    kernel.printed = {name: kernel.run(name) for name in kernel.cells}
    yield kernel
    kernel.client._cleanup_kernel()


def test_every_cell_runs_from_nothing(kernel):
    assert "mean of 4 real test episodes" in "".join(kernel.printed.values())
    assert kernel.printed["run-by-hand"] == "[0.0, 0.5, 0.318]\n"


def test_each_cell_can_be_run_again_in_any_order(kernel):
    before = kernel.stages()
    for name in kernel.runs + random.Random(0).sample(kernel.runs, 10):
        assert kernel.run(name) == kernel.printed[name], name
    assert kernel.stages() == before, "nothing was trained again"


KNOBS = {  # what each must make anew, and what it must leave alone
    "round.steps=4": ({"round-m", "round-c"}, {"random", "v", "codes", "m", "practice", "c", "test"}),
    "c.horizon=20": ({"c", "c-untrained-m", "test"}, {"random", "v", "codes", "m", "practice"}),
    "practice.steps=8": ({"practice", "verifier", "c", "test"}, {"random", "v", "codes", "m"}),
}


@pytest.mark.parametrize("knob", KNOBS)
def test_a_knob_trains_what_depends_on_it_and_nothing_else(kernel, knob):
    before = kernel.stages()
    kernel.turn(knob)
    for name in list(kernel.cells)[list(kernel.cells).index("run-profile") :]:
        kernel.run(name)
    kernel.turn("")
    made = {name.rpartition("-")[0] for name in kernel.stages() - before}
    assert KNOBS[knob][0] <= made and not KNOBS[knob][1] & made, made
