"""The notebook as a file: format, style, no leftovers."""

import ast
import json
import subprocess
import sys

import nbformat
from conftest import NOTEBOOK, ROOT


def test_ruff_accepts_the_code():
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *command, "--no-cache", str(NOTEBOOK), str(ROOT / "tests")], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_notebook_is_valid_and_light():
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata
    assert NOTEBOOK.stat().st_size < 1_700_000
    assert "widget-view" not in NOTEBOOK.read_text(), "a widget is nothing without its kernel: strip it from the saved outputs"
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)


def test_a_cell_defines_or_runs():
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert {"define", "run"} & set(cell["metadata"]["tags"]), cell["id"]
            if "define" in cell["metadata"]["tags"]:
                assert not cell["outputs"], cell["id"]


def test_no_cell_that_runs_overwrites_what_another_defines():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    tagged = [(cell["metadata"].get("tags", []), "".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"]
    defined = {node.name for tags, source in tagged if "define" in tags for node in ast.parse(source).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    stored = {
        node.id
        for tags, source in tagged
        if "run" in tags
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    assert not defined & stored
