"""Faults that were met in use, each with the right behaviour."""

import multiprocessing
import os
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from conftest import CELLS, ROOT, load_notebook, source_of, tagged


def cell(name: str) -> str:
    """The source of one cell."""
    return next(source_of(cell) for cell in CELLS if cell["id"] == name)


LIBRARIES = cell("run-began")


def test_libraries_are_those_of_the_requirements():
    tools = {"ipykernel", "nbconvert", "nbclient", "pytest", "ruff"}
    main = (ROOT / "requirements.txt").read_text().split("#")[0].split()
    space: dict = {}
    exec(LIBRARIES.split("installed =")[0], space)
    assert set(space["needed"]) == set(main) - tools


@pytest.mark.parametrize("version, asked", [("0.29.1", ["gymnasium>=1.1"]), (None, ["gymnasium>=1.1"]), ("1.3.0", []), ("2.0.0rc1", [])])
def test_an_old_library_is_replaced_and_a_missing_one_installed(monkeypatch, version, asked):
    others = [name for name in "torch torchvision pygame datasets nevergrad scipy pydantic matplotlib ipywidgets safetensors tqdm".split()]
    library = [types.SimpleNamespace(name=name, version="99") for name in others] + [types.SimpleNamespace(name="Gymnasium", version=version)] * (
        version is not None
    )
    monkeypatch.setattr("importlib.metadata.distributions", lambda: library)
    calls = []
    monkeypatch.setattr(subprocess, "run", lambda command, **how: calls.append(command) or types.SimpleNamespace(returncode=0))
    exec(LIBRARIES, {})
    assert [command[5:] for command in calls] == ([asked] if asked else [])


def test_without_pip_or_with_an_old_torch_a_sentence_says_what_to_do(monkeypatch):
    monkeypatch.setattr("importlib.metadata.distributions", lambda: [types.SimpleNamespace(name=name, version="99") for name in ("torch", "torchvision")])
    monkeypatch.setattr(subprocess, "run", lambda command, **how: types.SimpleNamespace(returncode=1))
    with pytest.raises(SystemExit, match="ensurepip"):
        exec(LIBRARIES, {})
    monkeypatch.setattr("importlib.metadata.distributions", lambda: [types.SimpleNamespace(name="torch", version="2.0")])
    with pytest.raises(SystemExit, match="torch>=2.6, torchvision>=0.21.*pair"):
        exec(LIBRARIES, {})


@pytest.mark.parametrize(
    "said, means",
    [("", False), ("1", True), ("true", True), ("True", True), (" YES ", True), ("on", True), ("0", False), ("False", False), ("no", False), ("off", False)],
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
    for name, value in {"WM_PROFILE": "smoke", "WM_RUN_FOLDER": str(tmp_path), "WM_OVERRIDES": "", "WM_USE_PRETRAINED": "0"}.items():
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
        nb.plt.rcParams.update(nb.STYLE)
        figure, place = nb.plt.subplots()
        place.set(title="t", xlabel="x")
        colours = [place.title.get_color(), place.xaxis.label.get_color(), place.spines["left"].get_edgecolor(), place.get_xticklabels()[0].get_color()]
        faces = [figure.get_facecolor(), place.get_facecolor()]
        nb.plt.close(figure)
    to_rgb = sys.modules["matplotlib.colors"].to_rgb
    assert {to_rgb(colour) for colour in colours} == {(0, 0, 0)} and {to_rgb(face) for face in faces} == {(1, 1, 1)}


def test_every_picture_is_what_its_name_says():
    """LaTeX believes the names, and fetches nothing from the network."""
    import base64

    pictures = [output["data"]["image/png"] for cell in CELLS for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    assert len(pictures) > 20 and all(base64.b64decode("".join(picture))[:8] == b"\x89PNG\r\n\x1a\n" for picture in pictures)
    assert not [cell["id"] for cell in CELLS if cell["cell_type"] == "markdown" and "](http" in source_of(cell) and "![" in source_of(cell)]


def test_a_film_is_an_animated_png_with_the_frames_that_it_was_given(nb):
    frames = np.linspace(0, 1, 5 * 8 * 6).reshape(5, 8, 6)
    film = nb.Image.open(nb.io.BytesIO(nb.film_of(frames, zoom=1, greys=256)))
    assert film.format == "PNG" and film.n_frames == 5
    for k in range(5):
        film.seek(k)
        assert np.abs(np.asarray(film.convert("L").resize((6, 8), 0)) / 255 - frames[k]).max() < 0.01


def test_a_float16_loss_begins_with_a_small_scale(nb, smoke, memory, tmp_path, monkeypatch):
    scales, real = [], nb.torch.amp.GradScaler
    monkeypatch.setattr(nb.torch.amp, "GradScaler", lambda **how: scales.append(how["init_scale"]) or real(**how))
    nb.train_v(nb.Progress(tmp_path), memory, v=smoke.v.but(steps=1, batch=4), seed=1)
    assert scales and max(scales) <= 16


# Environments in other processes.


class Stops:
    """A policy that does something at its tenth step."""

    def __init__(self, what):
        self.what, self.steps = what, 0

    def __call__(self, fresh, frames, states, seeds):
        self.steps += 1
        if self.steps == 10:
            self.what()
        return np.arange(len(frames)) % 2


def stop_button():
    raise KeyboardInterrupt


@pytest.mark.parametrize("what, error", [(lambda: [child.kill() for child in multiprocessing.active_children()[-1:]], (EOFError, BrokenPipeError, ConnectionResetError)),
                                         (stop_button, KeyboardInterrupt)])  # fmt: skip
def test_a_killed_environment_or_the_stop_button_end_the_play_and_all_its_processes(nb, what, error):
    before, begin = set(multiprocessing.active_children()), time.monotonic()
    with pytest.raises(error):
        nb.play(Stops(what), nb.seeds_for("random", 0, 6), 3)
    assert time.monotonic() - begin < 20 and set(multiprocessing.active_children()) <= before
    assert len(nb.play(nb.RandomPolicy(0), nb.seeds_for("random", 0, 3), 3)) == 3


# What lies on the disk.


def test_a_damaged_byte_is_found_and_recorded_again(nb, run_folder, capsys):
    how = {"purpose": "random", "episodes": 4, "seed": 1, "workers": 2}
    stage, before = nb.recorded(nb.RandomPolicy(1), **how)
    file = next((stage.folder / stage.result["parts"][0]).glob("*.arrow"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    _, after = nb.recorded(nb.RandomPolicy(1), **how)
    assert "checksum" in capsys.readouterr().out and all((a.frames == b.frames).all() for a, b in zip(before, after))


def test_no_data_file_stays_open(nb, episodes, tmp_path):
    nb.write_dataset(episodes[:2], tmp_path / "set", "random")
    back = nb.read_dataset(tmp_path / "set")
    if Path("/proc/self/maps").exists():
        assert str(tmp_path) not in Path("/proc/self/maps").read_text(), "a mapped file cannot be removed on Windows"
    assert len(back) == 2 and [path.name for path in tmp_path.iterdir()] == ["set"]


def test_two_kernels_may_record_the_same(nb, episodes, tmp_path, monkeypatch):
    real = nb.os.rename

    def slower(place, folder):
        if folder == tmp_path / "set":  # the datasets library renames files of its own
            monkeypatch.setattr(nb.os, "rename", real)
            nb.write_dataset(episodes[:2], folder, "random")  # the other kernel is done first
        real(place, folder)

    monkeypatch.setattr(nb.os, "rename", slower)
    nb.write_dataset(episodes[:2], tmp_path / "set", "random")
    assert len(nb.read_dataset(tmp_path / "set")) == 2 and len(list(tmp_path.iterdir())) == 1


def test_two_processes_save_the_same_file_at_once(tmp_path):
    code = "import sys; sys.path.insert(0, sys.argv[1])\nfrom conftest import load_notebook\nnb = load_notebook()\nfor k in range(200): nb.save({'a': nb.torch.full((1000,), k)}, nb.Path(sys.argv[2]))"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(ROOT / "tests"), str(tmp_path / "result.pt")]) for _ in range(2)]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["result.pt"]


@pytest.mark.parametrize("error, seen", [(OSError(28, "No space left on device"), RuntimeError), (KeyboardInterrupt(), KeyboardInterrupt)])
def test_a_full_disk_or_the_stop_button_leave_no_half_file(nb, tmp_path, monkeypatch, error, seen):
    nb.save({"a": 1}, tmp_path / "result.pt")
    before, real = (tmp_path / "result.pt").read_bytes(), nb.Path.write_bytes

    def half(path, content):
        real(path, content[: len(content) // 2])
        raise error

    monkeypatch.setattr(nb.Path, "write_bytes", half)
    with pytest.raises(seen) as found:
        nb.save({"a": 2}, tmp_path / "result.pt")
    assert seen is KeyboardInterrupt or ("Free some disk space" in str(found.value) and "WM_RUN_FOLDER" in str(found.value))
    assert [path.name for path in tmp_path.iterdir()] == ["result.pt"] and (tmp_path / "result.pt").read_bytes() == before


def test_a_full_disk_while_episodes_are_written_is_a_sentence(nb, episodes, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nb.datasets.Dataset, "save_to_disk", full)
    with pytest.raises(RuntimeError, match="Free some disk space"):
        nb.write_dataset(episodes[:2], tmp_path / "set", "random")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_kernel_left_is_swept_up_and_a_younger_one_spared(nb, tmp_path):
    stage = nb.usable_folder(tmp_path / "v-123")
    for name in ("old", "young"):
        nb.usable_folder(stage / f"{nb.UNFINISHED}{name}")
        (stage / f"{nb.UNFINISHED}{name}.pt").write_text("half")
    (stage / "result.pt").write_text("whole")
    for path in stage.glob("*old*"):
        os.utime(path, (time.time() - 7200,) * 2)
    nb.sweep(tmp_path)
    assert sorted(path.name for path in stage.iterdir()) == ["result.pt", f"{nb.UNFINISHED}young", f"{nb.UNFINISHED}young.pt"]


def test_a_foreign_result_is_set_aside(nb, run_folder, capsys):
    how = {"purpose": "random", "episodes": 4, "seed": 1, "workers": 2}
    stage, before = nb.recorded(nb.RandomPolicy(1), **how)
    for foreign in ("the result took seconds", {"result": {}, "seconds": 1.0}):
        nb.save(foreign, stage.folder / "result.pt")
        _, after = nb.recorded(nb.RandomPolicy(1), **how)
        assert "set aside" in capsys.readouterr().out and (before[0].frames == after[0].frames).all()


@pytest.mark.parametrize("harm", [lambda content: content[:200], lambda content: b"\x02" + content[1:], lambda content: content[:-5]])
def test_a_cut_or_foreign_checkpoint_is_a_value_error(nb, smoke, tmp_path, harm):
    path = tmp_path / "checkpoint.safetensors"
    nb.save_checkpoint(path, [nb.Stage("v", "k", tmp_path, 3.0, {"weights": nb.torch.randn(5), "loss": float("nan")})], smoke)
    assert nb.load_checkpoint(path, smoke)["v"].result["loss"] is None, "JSON knows no nan"
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(ValueError, match="not a checkpoint"):
        nb.load_checkpoint(path, smoke)


# Keys.


def key_of(source: str) -> str:
    """What the key of `work` is made of, in a module of its own."""
    import linecache

    module = types.ModuleType("trial")
    sys.modules["trial"] = module
    name = f"<trial {hash(source)}>"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    exec(compile(source, name, "exec"), module.__dict__)
    return load_notebook().code_of(module.work)


REACH = """small = 3
def pays(x):
    return x + 1
def worth(x):
    return x + 2
def made(share):
    return lambda x: x * share * 0.2
two = (lambda x: x + 5, lambda x: x + 6)
half = made(0.5)
def work(progress, how=pays, *, of=worth):
    return how(1) + of(1) + small + half(2)
"""


@pytest.mark.parametrize("old, new", [("x + 1", "x + 9"), ("x + 2", "x + 9"), ("0.2", "0.3"), ("small = 3", "small = 4")])
def test_a_key_follows_defaults_makers_and_plain_values(old, new):
    assert key_of(REACH) == key_of(REACH) != key_of(REACH.replace(old, new))


def test_what_a_dream_pays_and_how_much_is_recorded_at_a_time_are_in_the_keys():
    def keys(old="", new=""):
        nb = load_notebook("changed", lambda source: source.replace(old, new) if old else source)
        return nb.stage_key(nb.learn, seed=1), nb.stage_key(nb.record, seed=1)

    c, data = keys()
    assert keys("return says.reward\n", "return 2 * says.reward\n")[0] != c
    assert keys("PART = 500", "PART = 400")[1] != data


def test_a_key_is_the_same_under_every_python():
    import hashlib

    assert hashlib.sha256(key_of('def work(progress):\n    return [f"{a!r:>{4}} {chr(97)}" for a in range(3)]\n').encode()).hexdigest()[:12] == "9b482caf6e75"


# Small and strange settings.


def test_the_shortest_search_runs(nb, world, smoke, monkeypatch):
    monkeypatch.setattr(nb, "PAIRS", 200)
    learned = nb.learn(None, world, c=smoke.c.but(horizon=1, generations=1, population=4, axes=3, growing=1), seed=1, workers=1)
    assert learned["returns"].shape == (1, 4) and learned["weights"].isfinite().all()


def test_a_checkpoints_path_counts_in_its_own_population():
    source = next(source_of(cell) for cell in tagged("run") if "looked_at = " in source_of(cell))
    assert 'learned["returns"].shape[1]' in source and "settings.c.population" not in source.split("looked_at")[1].splitlines()[0]
