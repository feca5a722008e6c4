"""The notebook as a file: format, style, who owns a name, no leftovers."""

import ast
import json
import subprocess
import sys

import nbformat
import pytest
from conftest import CELLS, NOTEBOOK, ROOT, source_of, tagged


def test_ruff_accepts_the_code():
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "ruff",
                *command,
                "--no-cache",
                str(NOTEBOOK),
                str(ROOT / "tests"),
            ],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_notebook_is_valid_and_light():
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata
    assert NOTEBOOK.stat().st_size < 1_700_000
    assert "widget-view" not in NOTEBOOK.read_text(encoding="utf-8"), (
        "a widget is nothing without its kernel: strip it from the saved outputs"
    )
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert not [cell.id for cell in notebook.cells if "⟦" in cell.source], (
        "a sentence waits for its numbers"
    )


def test_a_cell_defines_or_runs():
    for cell in CELLS:
        if cell["cell_type"] == "code":
            assert len({"define", "run"} & set(cell["metadata"]["tags"])) == 1, cell["id"]
            if "define" in cell["metadata"]["tags"]:
                assert not cell["outputs"], cell["id"]
                statements = [
                    node for node in ast.parse(source_of(cell)).body if isinstance(node, ast.Expr)
                ]
                assert all(
                    "environ.update" in ast.unparse(node) or "filterwarnings" in ast.unparse(node)
                    for node in statements
                ), cell["id"]


def test_all_text_is_read_and_written_as_utf_8():
    """ruff's PLW1514 sees only calls whose type it knows."""
    sources = {cell["id"]: source_of(cell) for cell in CELLS if cell["cell_type"] == "code"}
    sources |= {
        path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*.py")
    }
    silent = []
    for name, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and isinstance(node.func, (ast.Attribute, ast.Name)):
                called = ast.unparse(node.func).rpartition(".")[2]
                binary = any(
                    isinstance(value, ast.Constant) and value.value in ("rb", "wb")
                    for value in node.args
                )
                text = (
                    called in ("read_text", "write_text")
                    or called == "open"
                    and ast.unparse(node.func) in ("open", "path.open", "file.open")
                )
                if (
                    text
                    and not binary
                    and "encoding" not in {keyword.arg for keyword in node.keywords}
                ):
                    silent.append((name, ast.unparse(node)))
    assert not silent


def names_bound(source: str) -> set[str]:
    """Names that a cell binds in the notebook's own scope: not inside functions, classes and
    comprehensions. Libraries that it imports don't count."""
    bound, waiting = set(), [ast.parse(source)]
    while waiting:
        for node in ast.iter_child_nodes(waiting.pop()):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                bound.add(node.name)
            elif isinstance(
                node, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
            ):
                continue
            else:
                if isinstance(node, ast.Name) and isinstance(node.ctx, (ast.Store, ast.Del)):
                    bound.add(node.id)
                waiting.append(node)
    return bound


def test_every_name_has_one_owner():
    """A cell that runs can be run again at any time only if no other cell binds its names: the
    other's readers would see its values."""
    owner: dict[str, str] = {}
    for cell in tagged("run") + tagged("define"):
        for name in names_bound(source_of(cell)) - {"_"}:
            assert name not in owner, f"{name} is bound by {owner.get(name)} and by {cell['id']}"
            owner[name] = cell["id"]
        assert not [
            node for node in ast.walk(ast.parse(source_of(cell))) if isinstance(node, ast.Delete)
        ], cell["id"]


def test_the_owner_test_sees_what_it_should():
    assert names_bound(
        "a = 1\nfor b in []: c = 2\nd = [e for e in a]\ndef f(g): h = 1\nwith x as i: pass"
    ) == {"a", "b", "c", "d", "f", "i"}


def test_every_definition_says_what_it_does():
    for cell in tagged("define"):
        for node in ast.parse(source_of(cell)).body:
            for part in (
                [node, *getattr(node, "body", [])]
                if isinstance(node, (ast.FunctionDef, ast.ClassDef))
                else []
            ):
                if isinstance(part, (ast.FunctionDef, ast.ClassDef)):
                    assert ast.get_docstring(part), (cell["id"], part.name)


def parts() -> dict[str, list[dict]]:
    """The cells by part, under its heading."""
    found, heading = {}, "title"
    for cell in CELLS:
        if cell["cell_type"] == "markdown" and source_of(cell).startswith("## "):
            heading = source_of(cell).splitlines()[0].removeprefix("## ")
        found.setdefault(heading, []).append(cell)
    return found


ROADS = [heading for heading in parts() if heading.partition(" ")[0] in map(str, range(10, 16))]


@pytest.mark.parametrize("road", ROADS)
def test_without_a_road_no_name_is_missing(tmp_path, road):
    cut = {id(cell) for cell in parts()[road]}
    code = [cell for cell in CELLS if cell["cell_type"] == "code" and id(cell) not in cut]
    place = tmp_path / "without.py"
    place.write_text("\n".join(map(source_of, code)), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--no-cache",
        "--select",
        "F821",
    ]
    done = subprocess.run([*command, str(place)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_newcomer_sees_one_story():
    """The machinery and the roads open folded, in Colab and in JupyterLab, and the table at the top
    leads to each part."""
    folded = {cell["id"] for cell in CELLS if cell["metadata"].get("jp-MarkdownHeadingCollapsed")}
    heads = {heading: cells[0]["id"] for heading, cells in parts().items()}
    assert folded == {
        place
        for heading, place in heads.items()
        if heading in ROADS or heading.startswith(("2 ", "What is kept", "The bench"))
    }
    ours = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["metadata"]["colab"]
    assert set(ours["collapsed_sections"]) == folded
    title = source_of(CELLS[0])
    for heading in heads:
        if heading[0].isdigit():
            assert f"](#{heading.replace(' ', '-')})" in title, heading
