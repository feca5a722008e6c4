"""The notebook as people use it: any cell again, other knobs, alone in an empty folder. nbval has
run it once from nothing; the stages are shared."""

import os
import random
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from conftest import NOTEBOOK, own_sockets
from nbclient import NotebookClient


class Kernel:
    """A kernel that executes cells of the notebook, in any order."""

    def __init__(self, place: Path, **environment: str) -> None:
        """`place`: where the kernel finds itself. `environment`: beside that of the tests."""
        self.notebook, self.folder = nbformat.read(NOTEBOOK, 4), Path(os.environ["WM_RUN_FOLDER"])
        self.client = NotebookClient(
            self.notebook,
            timeout=600,
            resources={"metadata": {"path": str(place)}},
            config=own_sockets(),
        )
        self.client.create_kernel_manager()
        self.client.start_new_kernel(env=os.environ | environment)
        self.client.start_new_kernel_client()
        self.cells = {
            cell.id: index
            for index, cell in enumerate(self.notebook.cells)
            if cell.cell_type == "code"
        }
        self.runs = [
            cell.id
            for cell in self.notebook.cells
            if cell.cell_type == "code" and "run" in cell.metadata.tags
        ]

    def run(self, name: str) -> str:
        """Execute one cell; return what it printed, without what tells the time."""
        cell = self.notebook.cells[self.cells[name]]
        self.client.execute_cell(cell, self.cells[name])  # an error in the cell is an error here
        text = "".join(
            output.text
            for output in cell.outputs
            if output.output_type == "stream" and output.name == "stdout"
        )
        return re.sub(r"\d+ s of work|\d+ minutes since|[\d,]+ dreamed steps a second.*", "", text)

    def ask(self, code: str) -> str:
        """Execute code that is no cell of the notebook; return what it printed."""
        cell = nbformat.v4.new_code_cell(code)
        self.client.execute_cell(cell, 0)
        return "".join(output.text for output in cell.outputs if output.output_type == "stream")

    def turn(self, *overrides: str) -> None:
        """Turn knobs, as the form does."""
        text = ",".join((os.environ["WM_OVERRIDES"], *overrides))
        self.ask(f"import os; os.environ.update(WM_OVERRIDES={text!r})")

    def stages(self) -> set[str]:
        """The names of all finished stages, with their keys."""
        results = [*self.folder.glob("smoke/*/result.pt"), *self.folder.glob("smoke/*/episodes")]
        return {path.parent.name for path in results}

    def end(self) -> None:
        """Stop the kernel."""
        self.client._cleanup_kernel()


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """A kernel in which the whole notebook was run once: alone in an empty folder, without a
    network, as with nothing but the file in Colab."""
    folder = tmp_path_factory.mktemp("alone")
    shutil.copy(NOTEBOOK, folder)
    nowhere = dict.fromkeys(
        ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"
    ) | {"no_proxy": "", "NO_PROXY": ""}
    kernel = Kernel(folder, WM_USE_PRETRAINED="1", **nowhere)
    kernel.before = kernel.stages()
    kernel.printed = {name: kernel.run(name) for name in kernel.cells}
    kernel.found = [path.name for path in folder.iterdir()]
    yield kernel
    kernel.end()


def test_alone_and_without_a_network_it_says_what_it_lacks_and_goes_on(kernel):
    lacking = {name for name, text in kernel.printed.items() if "could not be fetched" in text}
    assert lacking >= {
        "run-title-film",
        "run-profile",
        "run-short-c",
        "run-int8-world",
        "run-load-table",
        "run-by-gradient",
        "run-contrast-lines",
        "run-words-lines",
    }
    assert not [name for name, text in kernel.printed.items() if "not measured" in text]
    assert (
        "trains its own V, M and C" in kernel.printed["run-profile"]
        and "pretrained: nothing" in kernel.printed["run-profile"]
    )
    assert not kernel.before or kernel.stages() == kernel.before, "all else is as beside the assets"
    assert kernel.found == [NOTEBOOK.name]


def test_a_headless_run_asks_no_front_end_and_closes_its_environments(kernel):
    assert (
        kernel.ask(
            "print(len(get_ipython().kernel.comm_manager.comms), pole.unwrapped.isopen, "
            "rendered.unwrapped.isopen)"
        )
        == "0 False False\n"
    )
    shown = kernel.notebook.cells[kernel.cells["run-explorer"]].outputs
    assert [output.data.keys() >= {"image/png"} for output in shown] == [True], (
        "a still picture in place of the sliders"
    )


def test_each_cell_can_be_run_again_in_any_order(kernel):
    before = kernel.stages()
    for name in kernel.runs + random.Random(0).sample(kernel.runs, 10):
        assert kernel.run(name) == kernel.printed[name], name
    assert kernel.stages() == before, "nothing was trained again"


# The last cell that is run; what a knob must make anew by then; and what it must leave alone.
KNOBS = {
    "round.steps=4": (
        "run-round-stage",
        {"round-m", "round-c"},
        {"random", "v", "codes", "m", "practice", "c", "test"},
    ),
    "c.horizon=20": (
        "run-test-settings",
        {"c", "c-untrained-m"},
        {"random", "v", "codes", "m", "practice"},
    ),
    "practice.steps=8": (
        "run-verifier-stage",
        {"practice", "verifier", "c", "test"},
        {"random", "v", "codes", "m"},
    ),
}


@pytest.mark.parametrize("knob", KNOBS)
def test_a_knob_trains_what_depends_on_it_and_nothing_else(kernel, knob):
    (last, anew, alone), before, names = KNOBS[knob], kernel.stages(), list(kernel.cells)
    kernel.turn(knob)
    for name in names[names.index("run-profile") : names.index(last) + 1]:
        kernel.run(name)
    kernel.turn()
    made = {name.rpartition("-")[0] for name in kernel.stages() - before}
    assert anew <= made and not alone & made, made
