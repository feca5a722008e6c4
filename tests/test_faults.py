"""Faults that were met in use, each with the right behaviour."""

import ast
import importlib.metadata
import multiprocessing
import os
import re
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from conftest import CELLS, ROOT, load_notebook, source_of


def cell(name: str) -> str:
    """The source of one cell."""
    return next(source_of(cell) for cell in CELLS if cell["id"] == name)


LIBRARIES = cell("run-began")


# Libraries.

OPTIONAL = {
    "google",
    "huggingface_hub",
    "xllamacpp",
    "ray",
    "psutil",
}  # Colab's Drive, a large model that somebody names, Ray Serve
LISTED_AS = {
    "PIL": "pillow",
    "IPython": "ipython",
    "prometheus_client": "prometheus-client",
    "axe_playwright_python": "axe-playwright-python",
    "ray": "ray[serve]",
}
EXECUTE = {
    "nbval",
    "ipykernel",
    "nbconvert",
    "pygame",
}  # they run the notebook, or draw for gymnasium, and no cell imports them
TOOLS = {
    "pytest",
    "ruff",
    "jupyterlab",
    "xllamacpp",
    "ray[serve]",
    "psutil",
}  # commands, and what the notebook's own optional paths need to be tested


def listed(path: Path) -> dict[str, str]:
    """The libraries in a list, and which versions will do."""
    lines = [
        line
        for line in path.read_text(encoding="utf-8").splitlines()
        if line and not line.startswith(("#", "-r"))
    ]
    return {
        name: rest
        for name, rest in (re.fullmatch(r"([\w.\[\]-]+)(.*)", line).groups() for line in lines)
    }


def imported(sources: list[str]) -> set[str]:
    """The libraries that some code imports, anywhere in it, under the names of a list."""
    found = set()
    for node in (node for source in sources for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
        elif isinstance(node, ast.Call) and "importorskip" in ast.unparse(node.func):
            found.add(node.args[0].value)
    own = {path.stem for path in (ROOT / "tests").glob("*.py")}
    return {
        LISTED_AS.get(name, name)
        for name in (name.partition(".")[0] for name in found)
        if name not in own | set(sys.stdlib_module_names)
    }


NEEDS, TEST_NEEDS = listed(ROOT / "requirements.txt"), listed(ROOT / "tests" / "requirements.txt")


def test_requirements_are_what_the_notebook_imports_and_what_executes_it():
    cells = imported([source_of(cell) for cell in CELLS if cell["cell_type"] == "code"])
    assert cells - {LISTED_AS.get(name, name) for name in OPTIONAL} == NEEDS.keys() - EXECUTE


def test_the_tests_requirements_are_what_the_tests_import_and_their_tools():
    tests = imported([path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*.py")])
    assert tests - NEEDS.keys() | TOOLS == TEST_NEEDS.keys()


def test_the_first_cell_asks_for_what_the_notebook_imports_at_once():
    space: dict = {}
    exec(LIBRARIES.split("missing =")[0], space)
    engineer = set(re.search(r'road_needs = "(.*?)"', cell("run-roads"))[1].split())
    before = {"ipython", "packaging"}  # it could not even begin without them
    assert {
        f"{name}{version}"
        for name, version in NEEDS.items()
        if name not in EXECUTE - {"pygame"} | engineer | before
    } == set(space["needed"])


def asks_pip_for(monkeypatch, versions: dict, code: int = 0) -> list[str]:
    """What the first cell has pip install, on a machine with these versions, and the newest of
    everything else."""

    def version(name):
        if versions.get(name, "99") is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions.get(name, "99")

    calls = []
    monkeypatch.setattr("importlib.metadata.version", version)
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda command, **how: calls.append(command) or types.SimpleNamespace(returncode=code),
    )
    exec(LIBRARIES, {})
    return [need for command in calls for need in command[5:]]


@pytest.mark.parametrize(
    "version, asked",
    [("0.29.1", ["gymnasium>=1.1"]), (None, ["gymnasium>=1.1"]), ("1.3.0", []), ("2.0.0rc1", [])],
)
def test_an_old_library_is_replaced_and_a_missing_one_installed(monkeypatch, version, asked):
    assert asks_pip_for(monkeypatch, {"gymnasium": version}) == asked


def test_without_pip_or_with_an_old_torch_a_sentence_says_what_to_do(monkeypatch):
    with pytest.raises(SystemExit, match="ensurepip"):
        asks_pip_for(monkeypatch, {"gymnasium": None}, code=1)
    with pytest.raises(SystemExit, match="torch>=2.6, torchvision>=0.21.*pair"):
        asks_pip_for(monkeypatch, {"torch": "2.0", "torchvision": None})


def test_of_two_copies_the_first_counts_and_a_record_without_a_name_does_no_harm(
    monkeypatch, tmp_path
):
    for name, text in {
        "gymnasium-0.29.0": "Metadata-Version: 2.1\nName: gymnasium\nVersion: 0.29.0\n",
        "nameless-1.0": "",
        "~orch-2.0": "Version: 2.0\n",
    }.items():
        (tmp_path / f"{name}.dist-info").mkdir()
        (tmp_path / f"{name}.dist-info" / "METADATA").write_text(text, encoding="utf-8")
    calls = []
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda command, **how: calls.append(command[5:]) or types.SimpleNamespace(returncode=0),
    )
    monkeypatch.syspath_prepend(tmp_path)
    exec(LIBRARIES, {})
    assert calls == [["gymnasium>=1.1"]], "the copy that Python would import is an old one"


def test_part_10_installs_nothing_unless_its_road_is_computed(monkeypatch):
    calls = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda command, **how: calls.append(command) or types.SimpleNamespace(returncode=1),
    )
    space = {
        "os": os,
        "subprocess": subprocess,
        "sys": sys,
        "profile_name": lambda name: "smoke",
        "PROFILE": "smoke",
    }
    for roads in ("none", "words"):
        monkeypatch.setenv("WM_ROADS", roads)
        exec(cell("run-roads"), space)
    assert not calls
    monkeypatch.setenv("WM_ROADS", "engineer")
    with pytest.raises(RuntimeError, match="pip could not install fastapi"):
        exec(cell("run-roads"), space)


# Switches, settings, styles.


@pytest.mark.parametrize(
    "said, means",
    [
        ("", False),
        ("1", True),
        ("true", True),
        ("True", True),
        (" YES ", True),
        ("on", True),
        ("0", False),
        ("False", False),
        ("no", False),
        ("off", False),
    ],
)
def test_switches_are_read_as_people_mean_them(nb, monkeypatch, said, means):
    monkeypatch.setenv("WM_USE_PRETRAINED", said)
    assert nb.switch("WM_USE_PRETRAINED") is means


def test_a_switch_that_is_not_understood_is_refused(nb, monkeypatch):
    monkeypatch.setenv("WM_USE_PRETRAINED", "perhaps")
    with pytest.raises(ValueError, match="WM_USE_PRETRAINED='perhaps'.*true"):
        nb.switch("WM_USE_PRETRAINED")


@pytest.mark.parametrize("text, seed", [("0", 0), ("7", 7), ('"11"', 11)])
def test_the_forms_seed_is_taken_also_zero_and_without_quotes(tmp_path, monkeypatch, text, seed):
    nb = load_notebook("with_a_form")
    for name, value in {
        "WM_PROFILE": "smoke",
        "WM_RUN_FOLDER": str(tmp_path),
        "WM_OVERRIDES": "",
        "WM_USE_PRETRAINED": "0",
    }.items():
        monkeypatch.setenv(name, value)
    exec(cell("run-profile").replace('SEED = ""', f"SEED = {text}"), nb.__dict__)
    assert nb.settings.seed == seed


@pytest.mark.parametrize("text", ["seed.x=5,seed=3", "seed=3,seed.x=5"])
def test_a_name_cannot_be_a_setting_and_a_branch_in_either_order(nb, text):
    with pytest.raises(ValueError, match="seed"):
        nb.make_settings("smoke", text)


def test_figures_are_black_on_white_whatever_style_was_set(nb):
    with nb.plt.rc_context():
        nb.plt.style.use("dark_background")
        nb.plt.style.use(["default", nb.STYLE])
        figure, place = nb.plt.subplots()
        place.set(title="t", xlabel="x")
        colours = [
            place.title.get_color(),
            place.xaxis.label.get_color(),
            place.spines["left"].get_edgecolor(),
            place.get_xticklabels()[0].get_color(),
        ]
        faces = [figure.get_facecolor(), place.get_facecolor()]
        nb.plt.close(figure)
    to_rgb = sys.modules["matplotlib.colors"].to_rgb
    assert {to_rgb(colour) for colour in colours} == {(0, 0, 0)} and {
        to_rgb(face) for face in faces
    } == {(1, 1, 1)}


def test_every_picture_is_what_its_name_says():
    """LaTeX believes the names, and fetches nothing from the network."""
    import base64

    pictures = [
        output["data"]["image/png"]
        for cell in CELLS
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) > 20 and all(
        base64.b64decode("".join(picture))[:8] == b"\x89PNG\r\n\x1a\n" for picture in pictures
    )
    assert not [
        cell["id"]
        for cell in CELLS
        if cell["cell_type"] == "markdown"
        and "](http" in source_of(cell)
        and "![" in source_of(cell)
    ]


def test_a_film_is_an_animated_png_with_the_frames_that_it_was_given(nb):
    frames = np.linspace(0, 1, 5 * 64 * 64).reshape(5, 64, 64)
    film = nb.film_of({"": nb.torch.from_numpy(frames)}, [""] * 5, zoom=1)
    film = nb.Image.open(nb.io.BytesIO(film))
    assert film.format == "PNG" and film.n_frames == 5
    for k in range(5):
        film.seek(k)
        shown = np.asarray(film.convert("L").resize((64, 32), 0)) / 255
        assert np.abs(shown - frames[k][nb.ROOM.band]).max() < 0.03


# Environments in other processes.


class Stops:
    """A policy that does something at its tenth step."""

    def __init__(self, what):
        self.what, self.steps = what, 0

    def __call__(self, now):
        self.steps += 1
        if self.steps == 10:
            self.what()
        return np.arange(len(now.frames)) % 2


def stop_button():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "what, error",
    [
        (
            lambda: [child.kill() for child in multiprocessing.active_children()[-1:]],
            (EOFError, BrokenPipeError, ConnectionResetError),
        ),
        (stop_button, KeyboardInterrupt),
    ],
)
def test_a_killed_environment_or_the_stop_button_end_the_play_and_all_its_processes(
    nb, what, error
):
    before, begin = set(multiprocessing.active_children()), time.monotonic()
    with pytest.raises(error):
        nb.play(Stops(what), nb.seeds_for("random", 0, 6), 3)
    assert time.monotonic() - begin < 20 and set(multiprocessing.active_children()) <= before
    assert len(nb.play(nb.random_policy, nb.seeds_for("random", 0, 3), 3)) == 3


# What lies on the disk.


def recorded(nb, episodes: int):
    """A few kept episodes of a coin."""
    return nb.recorded(nb.random_policy, "random", episodes=episodes, seed=1, workers=2)


def alike(before, after) -> bool:
    """Two stages hold the same pictures."""
    return all((a.frames == b.frames).all() for a, b in zip(before.result, after.result))


def test_no_data_file_stays_open(nb, episodes, tmp_path):
    nb.write_dataset(episodes[:2], 3.0, tmp_path / "set")
    back, _ = nb.read_dataset(tmp_path / "set")
    if Path("/proc/self/maps").exists():
        assert str(tmp_path) not in Path("/proc/self/maps").read_text(encoding="utf-8"), (
            "a mapped file cannot be removed on Windows"
        )
    assert len(back) == 2 and [path.name for path in tmp_path.iterdir()] == ["set"]


def test_two_kernels_may_record_the_same(nb, episodes, tmp_path, monkeypatch):
    real = nb.Path.replace

    def slower(side, folder):
        monkeypatch.setattr(nb.Path, "replace", real)
        nb.write_dataset(episodes[:2], 3.0, folder)  # the other kernel is done first
        return side.replace(folder)

    monkeypatch.setattr(nb.Path, "replace", slower)
    nb.write_dataset(episodes[:2], 3.0, tmp_path / "set")
    assert len(nb.read_dataset(tmp_path / "set")[0]) == 2 and len(list(tmp_path.iterdir())) == 1


def test_two_processes_save_the_same_file_at_once(tmp_path):
    code = f"""{cell("define-asset")}
import sys
for k in range(200):
    write_whole(Path(sys.argv[1]), bytes([k]) * 10_000)
"""
    (tmp_path / "save.py").write_text(code, encoding="utf-8")
    writers = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "save.py"), str(tmp_path / "place" / "result.pt")]
        )
        for _ in range(2)
    ]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    assert [path.name for path in (tmp_path / "place").iterdir()] == ["result.pt"]


@pytest.mark.parametrize(
    "error, seen",
    [
        (OSError(28, "No space left on device"), RuntimeError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_full_disk_or_the_stop_button_leave_no_half_file(nb, tmp_path, monkeypatch, error, seen):
    nb.save({"a": 1}, 0.0, tmp_path / "result.pt")
    before, real = (tmp_path / "result.pt").read_bytes(), nb.Path.write_bytes

    def half(path, content):
        real(path, content[: len(content) // 2])
        raise error

    monkeypatch.setattr(nb.Path, "write_bytes", half)
    with pytest.raises(seen) as found:
        nb.save({"a": 2}, 0.0, tmp_path / "result.pt")
    assert seen is KeyboardInterrupt or (
        "Free some disk space" in str(found.value) and "WM_RUN_FOLDER" in str(found.value)
    )
    assert [path.name for path in tmp_path.iterdir()] == ["result.pt"] and (
        tmp_path / "result.pt"
    ).read_bytes() == before


def test_a_full_disk_while_episodes_are_written_is_a_sentence(nb, episodes, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nb.datasets.Dataset, "save_to_disk", full)
    with pytest.raises(RuntimeError, match="Free some disk space"):
        nb.write_dataset(episodes[:2], 3.0, tmp_path / "set")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_kernel_left_is_swept_up_and_a_younger_one_spared(nb, tmp_path):
    stage = nb.usable_folder(tmp_path / "v-123")
    for name in ("old", "young"):
        nb.usable_folder(stage / f"{nb.UNFINISHED}{name}")
        (stage / f"{nb.UNFINISHED}{name}.pt").write_text("half", encoding="utf-8")
    (stage / "result.pt").write_text("whole", encoding="utf-8")
    for path in stage.glob("*old*"):
        os.utime(path, (time.time() - 7200,) * 2)
    nb.sweep(tmp_path)
    assert sorted(path.name for path in stage.iterdir()) == [
        "result.pt",
        f"{nb.UNFINISHED}young",
        f"{nb.UNFINISHED}young.pt",
    ]


def test_a_foreign_result_is_set_aside(nb, run_folder, capsys):
    before = recorded(nb, 2)
    for foreign in ("no number", "", "{}"):
        (before.folder / "episodes" / "seconds").write_text(foreign, encoding="utf-8")
        assert alike(before, recorded(nb, 2)) and "set aside" in capsys.readouterr().out


@pytest.mark.parametrize(
    "harm",
    [
        lambda content: content[:200],
        lambda content: b"\x02" + content[1:],
        lambda content: content[:-5],
    ],
)
def test_a_cut_or_foreign_checkpoint_is_a_value_error(nb, smoke, tmp_path, harm):
    path = tmp_path / "checkpoint.pt"
    nb.save_checkpoint(
        path,
        [nb.Stage("v", tmp_path, 3.0, {"weights": nb.torch.randn(5), "loss": float("nan")})],
        smoke,
    )
    assert np.isnan(nb.load_checkpoint(path, smoke)["v"].result["loss"])
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(ValueError, match="not a checkpoint"):
        nb.load_checkpoint(path, smoke)


# Small and strange settings.


def test_the_shortest_search_runs(nb, world, smoke, monkeypatch):
    monkeypatch.setattr(nb, "PAIRS", 200)
    learned = nb.train_c(
        None,
        world,
        c=smoke.c.but(horizon=1, generations=1, population=4, axes=3, growing=1),
        seed=1,
    )
    assert learned["returns"].shape == (1, 4) and learned["weights"].isfinite().all()


@pytest.mark.parametrize(
    "branch, changes, words",
    [
        ("c", {"horizn": 15}, "horizn"),
        ("c", {"horizon": -3}, "(?s)horizon.*greater than 0.*-3"),
        ("v", {"max_shift": 32}, "(?s)max_shift.*less than or equal to 31"),
        ("v", {"law": "nan"}, "(?s)law.*finite"),
    ],
)
def test_a_change_in_code_is_checked_as_one_from_text_is(nb, smoke, branch, changes, words):
    with pytest.raises(ValueError, match=words):
        getattr(smoke, branch).but(**changes)
    with pytest.raises(ValueError, match=words):
        nb.make_settings(
            "smoke",
            ",".join(f"{branch}.{name}={value}" for name, value in changes.items()),
        )


def test_what_is_not_changed_stays(smoke):
    other = smoke.but(seed=7, c=smoke.c.but(horizon=15))
    assert (other.seed, other.c.horizon, other.v) == (7, 15, smoke.v) and other.c.but(
        horizon=smoke.c.horizon
    ) == smoke.c


# Training that stops, and goes on elsewhere.


def a_fit(nb, folder, loss_at=lambda step: None, steps=8, **how):
    """Train two numbers; `loss_at` may put another loss in the place of a step's own."""
    nb.torch.manual_seed(0)
    model = nb.nn.Linear(2, 1)

    def batch_loss(generator, step):
        loss = (
            model(nb.torch.randn(4, 2, generator=generator)).square().mean()
            if loss_at(step) is None
            else loss_at(step) * model.weight.sum()
        )
        return loss, {"loss": loss}

    return nb.fit(
        model,
        batch_loss,
        nb.TrainSettings(steps=steps, batch=4),
        0,
        nb.Progress(folder),
        "a trial",
        **how,
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_names_its_step_and_is_never_kept(
    nb, run_folder, monkeypatch, value
):
    monkeypatch.setattr(nb, "SAVE_EVERY", 2)

    def work(progress, *, steps: int):
        return a_fit(nb, progress.path.parent, lambda step: value if step == 5 else None, steps)

    work.__module__ = nb.__name__
    monkeypatch.setattr(nb, "stage_key", lambda *what, **how: "key")
    with pytest.raises(FloatingPointError, match="a trial: the loss.*step 5"):
        nb.keep(work, name="trial", steps=8)
    (left,) = (run_folder / "trial-key").iterdir()
    state, _ = nb.load(left)
    assert left.name == "progress.pt" and state["step"] == 4
    assert all(value.isfinite().all() for value in state["model"].values())


def test_a_gradient_that_is_no_number_is_not_followed(nb, tmp_path):
    model = nb.nn.Linear(1, 1)

    def batch_loss(generator, step):
        return (0 * model.weight.sum()).sqrt(), {}  # the loss is 0, its gradient none

    with pytest.raises(FloatingPointError, match="gradient.*step 0"):
        nb.fit(model, batch_loss, nb.TrainSettings(steps=1), 0, nb.Progress(tmp_path), "a trial")


@pytest.mark.parametrize(
    "error",
    [
        OSError(5, "Input/output error"),
        PermissionError(13, "Permission denied"),
        MemoryError(),
    ],
)
def test_a_machine_that_fails_in_reading_sets_nothing_aside(nb, run_folder, monkeypatch, error):
    first = recorded(nb, 2)
    before = sorted(path.name for path in first.folder.iterdir())

    def fail(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(nb.datasets, "load_from_disk", fail)
        with pytest.raises(type(error)):
            recorded(nb, 2)
    assert sorted(path.name for path in first.folder.iterdir()) == before
    assert alike(first, recorded(nb, 2))


def test_a_part_that_was_deleted_is_recorded_again(nb, run_folder):
    before = recorded(nb, 2)
    nb.shutil.rmtree(before.folder / "episodes")
    assert alike(before, recorded(nb, 2))


def test_an_interrupted_recording_loses_one_part_at_most(nb, run_folder, monkeypatch):
    monkeypatch.setattr(nb, "PART", 2)
    real, parts = nb.play, iter(range(9))

    def then_stopped(*what):
        if next(parts) == 1:
            raise KeyboardInterrupt
        return real(*what)

    with monkeypatch.context() as patch:
        patch.setattr(nb, "play", then_stopped)
        with pytest.raises(KeyboardInterrupt):
            recorded(nb, 4)
    (kept,) = run_folder.glob("*/episodes")
    stamp = (kept / "README.md").stat().st_mtime_ns
    whole = recorded(nb, 4)
    assert len(whole.result) == 4 and (kept / "README.md").stat().st_mtime_ns == stamp


def test_an_agent_meets_another_number_of_environments(nb, world, memory):
    v = nb.frozen(nb.V(nb.make_settings("smoke", "v.latents=6").v))
    agent = nb.Agent(world._replace(v=v), nb.controller(nb.torch.ones(23)))
    for workers in (2, 3, 1):
        assert len(nb.play(agent, nb.seeds_for("random", 0, 3), workers, steps=5)) == 3
    pairs = world._replace(v=v, m=nb.M(6, 16, 2), context=2)
    macro = nb.MacroAgent(pairs, lambda k, state: (state.z[:, :2] > 0).float())
    for workers in (2, 3):
        assert len(nb.play(macro, nb.seeds_for("random", 0, 3), workers, steps=5)) == 3


def test_a_home_folder_is_understood(nb, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert nb.usable_folder(Path("~/runs")) == tmp_path / "runs" and (tmp_path / "runs").is_dir()


# Our own files.


def test_an_asset_is_beside_the_notebook_or_fetched_once_or_a_sentence_says_where_it_lies(
    nb, tmp_path, monkeypatch, capsys
):
    import io
    import urllib.error

    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WM_RUN_FOLDER", str(tmp_path / "kept"))
    monkeypatch.setattr(
        nb.urllib.request,
        "urlopen",
        lambda address, timeout: asked.append(address) or io.BytesIO(b"a,b"),
    )
    path = nb.asset("experiments/student.csv")
    assert path.read_bytes() == b"a,b" and path.is_relative_to(tmp_path / "kept")
    assert asked == [f"https://github.com/{nb.REPOSITORY}/raw/main/assets/experiments/student.csv"]
    assert (
        nb.asset("experiments/student.csv") == path
        and len(asked) == 1
        and [file.name for file in path.parent.iterdir()] == ["student.csv"]
    )

    def refuse(address, timeout):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(nb.urllib.request, "urlopen", refuse)
    assert nb.asset("quick_run/film.png") is None
    said = capsys.readouterr().out
    assert "assets/quick_run/film.png is not beside this notebook" in said and nb.REPOSITORY in said
    beside = tmp_path / "assets" / "experiments"
    beside.mkdir(parents=True)
    (beside / "student.csv").write_bytes(b"beside")
    assert nb.asset("experiments/student.csv").read_bytes() == b"beside"
