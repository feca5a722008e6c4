"""The notebook in JupyterLab, in a real browser: run in the smallest profile, turn a slider, play
the dream."""

import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from conftest import NOTEBOOK, ROOT
from test_page import chrome  # noqa: F401


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab with a copy of the notebook and its assets: its address."""
    if not shutil.which(
        "jupyter-lab", path=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    ):
        pytest.skip("no JupyterLab here: pip install jupyterlab")
    if int(importlib.metadata.version("ipywidgets").split(".")[0]) < 8:
        pytest.skip(
            "ipywidgets 7 has no sliders in JupyterLab 4; Colab, which ships it, has a front end "
            "of its own"
        )
    folder = tmp_path_factory.mktemp("lab")
    shutil.copy(NOTEBOOK, folder)
    shutil.copytree(ROOT / "assets", folder / "assets")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "WM_NO_WIDGETS": "",
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
    }
    kept = folder / "settings" / "@jupyterlab" / "notebook-extension"
    kept.mkdir(parents=True)
    (kept / "tracker.jupyterlab-settings").write_text(
        '{"windowingMode": "none"}', encoding="utf-8"
    )  # all cells are in the page, seen or not
    options = [
        f"--ServerApp.root_dir={folder}",
        f"--port={port}",
        "--no-browser",
        "--IdentityProvider.token=",
        "--allow-root",
        "--expose-app-in-browser",
    ]
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *options],
        cwd=folder,
        env=os.environ | settings,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def test_a_reader_runs_all_turns_a_slider_and_plays(chrome, lab, tmp_path):  # noqa: F811
    tab = chrome.new_page(viewport={"width": 1300, "height": 1000})
    tab.goto(f"{lab}/lab/tree/{NOTEBOOK.name}")
    tab.wait_for_function(
        "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === "
        "'idle'",
        timeout=120_000,
    )
    # Parts that open folded run like all others; to be played with, they must be seen.
    for command in ("expand-all-headings", "run-all-cells"):
        tab.evaluate(f"void jupyterapp.commands.execute('notebook:{command}')")
    frame = tab.locator("iframe[title='the dream to play with']")
    frame.wait_for(state="attached", timeout=480_000)
    tab.locator(".jp-OutputArea-output", has_text="minutes since the first cell").wait_for(
        state="attached", timeout=480_000
    )
    assert tab.locator("[data-mime-type='application/vnd.jupyter.error']").count() == 0, (
        "a cell failed"
    )

    handle = tab.locator(".widget-slider [role=slider], .widget-slider .noUi-handle").first
    picture = ".widget-interact img"
    before = tab.locator(picture).first.get_attribute("src")
    handle.scroll_into_view_if_needed()
    handle.focus()
    for _ in range(10):
        tab.keyboard.press("ArrowRight")
    tab.wait_for_function(
        "([picture, before]) => { const now = document.querySelector(picture); return now && "
        "now.src !== before; }",
        arg=[picture, before],
        timeout=30_000,
    )

    frame.scroll_into_view_if_needed()
    game = frame.element_handle().content_frame()
    game.click("#right")
    # An M of the smallest profile may see the end after one step; then the next push begins again.
    for k in range(10):
        game.wait_for_function(
            "!game.over || performance.now() - game.ended > 1000", timeout=30_000
        )
        tab.keyboard.press(("ArrowRight", "ArrowLeft")[k % 2])
        game.wait_for_function("game.begun && game.steps >= 1", timeout=30_000)
    assert "steps" in game.inner_text("#story")
    tab.screenshot(path=tmp_path / "lab.png")
    tab.close()
