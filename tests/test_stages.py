"""Stages: keys, caching, resuming, broken files, the checkpoint."""

import itertools

import pytest
from conftest import CELLS, ROOT, load_notebook, source_of, tagged


class Interrupted(Exception):
    """Stands for a kill in the middle of a stage."""


def same(a, b) -> bool:
    """Two stage results hold the same weights."""
    return a["weights"].keys() == b["weights"].keys() and all(
        (a["weights"][name] == b["weights"][name]).all() for name in a["weights"]
    )


def interrupt_after(nb, monkeypatch, saves: int):
    """Make the stage die right after its n-th save."""
    real, count = nb.Progress.save, itertools.count(1)

    def save(self, state):
        real(self, state)
        if next(count) == saves:
            raise Interrupted

    monkeypatch.setattr(nb.Progress, "save", save)


def test_a_finished_stage_is_not_run_again(nb, run_folder, smoke, memory, monkeypatch):
    v = smoke.v.but(steps=3, batch=8)
    first = nb.keep(nb.train_v, memory, name="v", v=v, seed=1)
    monkeypatch.setattr(nb.torch.optim, "Adam", None)  # from here on, training would fail
    again = nb.keep(nb.train_v, memory, name="v", v=v, seed=1)
    assert same(first.result, again.result) and again.seconds == first.seconds
    with pytest.raises(TypeError):
        nb.keep(nb.train_v, memory, name="v", v=v, seed=2)


@pytest.mark.parametrize("law", [0.0, 20.0])
def test_resumed_v_equals_uninterrupted_v(nb, run_folder, smoke, memory, monkeypatch, law):
    monkeypatch.setattr(nb, "SAVE_EVERY", 3)

    def train(folder):
        return nb.train_v(
            nb.Progress(run_folder / folder),
            memory,
            v=smoke.v.but(steps=9, batch=8, law=law),
            seed=1,
        )

    whole = train("whole")
    with monkeypatch.context() as patch:
        interrupt_after(nb, patch, 2)
        with pytest.raises(Interrupted):
            train("cut")
    assert (run_folder / "cut" / "progress.pt").exists()
    resumed = train("cut")
    assert same(whole, resumed) and whole["log"] == resumed["log"]


@pytest.mark.parametrize("practice", [False, True])
def test_resumed_m_equals_uninterrupted_m_and_seeds_matter(
    nb, run_folder, smoke, world, monkeypatch, practice
):
    monkeypatch.setattr(nb, "SAVE_EVERY", 3)
    how = {
        "m": smoke.m.but(steps=8, hidden=16, context=4),
        "practice": smoke.practice.but(steps=8, alone=5) if practice else None,
    }

    def train(folder, seed=1):
        return nb.train_m(
            nb.Progress(run_folder / folder), world.memory, world.codes, **how, seed=seed
        )

    whole = train("whole")
    assert same(whole, train("twin")) and not same(whole, train("other", 2))
    with monkeypatch.context() as patch:
        interrupt_after(nb, patch, 1)
        with pytest.raises(Interrupted):
            train("cut")
    assert same(whole, train("cut"))


def test_looks_are_few_short_and_on_seeds_of_their_own(nb, world, monkeypatch):
    played = []
    monkeypatch.setattr(nb, "play", lambda *how, **steps: played.append((*how, steps)) or [])
    found = {"path": nb.torch.randn(6, 23), "returns": nb.torch.zeros(6, 8)}
    seen = nb.looks(None, world, found, every=16, episodes=3, seed=5, workers=2)
    assert list(seen) == [0, 1, 3, 5] and len(played) == 4
    for _, seeds, _, steps in played:
        assert seeds == nb.seeds_for("check", 5, 3) and steps == {"steps": nb.LOOK_STEPS}


def test_resumed_c_equals_uninterrupted_c_which_never_plays(
    nb, run_folder, world, smoke, monkeypatch
):
    monkeypatch.setattr(nb, "PAIRS", 200)
    monkeypatch.delattr(nb, "play")
    c = smoke.c.but(generations=54, population=8, axes=3, growing=1, horizon=3)

    def learn(folder):
        return nb.train_c(nb.Progress(run_folder / folder), world, c=c, seed=1)

    whole = learn("whole")
    assert whole["returns"].shape == (54, 8) and len(whole["path"]) == len(whole["dream"]) == 54
    judged, true_returns = [], nb.dream_returns
    with monkeypatch.context() as patch:
        interrupt_after(nb, patch, 2)
        with pytest.raises(Interrupted):
            learn("cut")
    monkeypatch.setattr(
        nb, "dream_returns", lambda m, w, *rest: judged.append(len(w)) or true_returns(m, w, *rest)
    )
    resumed = learn("cut")
    assert judged.count(8) == 4, "only the missing generations were dreamed"
    assert nb.torch.equal(whole["weights"], resumed["weights"]) and nb.torch.equal(
        whole["returns"], resumed["returns"]
    )
    path = nb.torch.nn.functional.normalize(whole["path"], dim=1)
    assert (
        float(nb.torch.nn.functional.normalize(whole["weights"], dim=0) @ path[27:].mean(0)) > 0.5
    ), "what ships is in the middle of the second half"


@pytest.mark.parametrize("content", [b"", b"not a save", b"PK\x03\x04 half a zip"])
def test_broken_file_is_said_and_set_aside(nb, tmp_path, capsys, content):
    path = tmp_path / "result.pt"
    path.write_bytes(content)
    assert nb.found(nb.load, path) is None
    assert "could not be used" in capsys.readouterr().out
    (aside,) = tmp_path.iterdir()
    assert aside.read_bytes() == content and aside.name.startswith("result.pt.unreadable")


def test_foreign_saves_are_set_aside_and_their_code_is_never_run(nb, tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("harm").touch, ())

    (tmp_path / "result.pt").write_bytes(pickle.dumps(Evil()))
    assert nb.found(nb.load, tmp_path / "result.pt") is None and not (tmp_path / "harm").exists()
    nb.torch.save({"something": 1}, tmp_path / "result.pt")
    assert nb.found(nb.load, tmp_path / "result.pt") is None
    assert not (tmp_path / "result.pt").exists()


def test_an_unusable_folder_is_a_sentence(nb, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(RuntimeError, match="WM_RUN_FOLDER"):
        nb.usable_folder(tmp_path / "file" / "runs")
    with pytest.raises(RuntimeError, match="WM_OUT_FOLDER"):
        nb.usable_folder(tmp_path / "file" / "out", "WM_OUT_FOLDER")


def small_run(nb, smoke, folder):
    """A checkpoint with one stage of each kind of value."""
    v, m = nb.V(smoke.v).eval(), nb.M(smoke.v.latents, smoke.m.hidden)
    stages = [
        nb.Stage(
            "v",
            folder,
            3.0,
            {"weights": dict(v.state_dict()), "log": {"step": [0, 1], "loss": [2.5, 1.5]}},
        ),
        nb.Stage("m", folder, 2.0, {"weights": dict(m.state_dict())}),
        nb.Stage(
            "c",
            folder,
            1.0,
            {"weights": nb.torch.randn(2, 5), "dream": [[9.0, 10.0], [11.0, 12.0]], "parts": ["a"]},
        ),
    ]
    stages.append(stages[1]._replace(name="again"))  # it shares its tensors
    digest = nb.save_checkpoint(folder / "checkpoint.pt", stages, smoke)
    (folder / "manifest.json").write_text(
        nb.json.dumps({"checkpoint_sha256": digest}), encoding="utf-8"
    )
    return stages, digest


def ours(nb, monkeypatch, folder):
    """Make this folder the one in which the notebook finds the files of our own run."""
    monkeypatch.setattr(nb, "asset", lambda name: folder / nb.Path(name).name)


def test_checkpoint_round_trip(nb, smoke, tmp_path):
    stages, digest = small_run(nb, smoke, tmp_path)
    loaded = nb.load_checkpoint(tmp_path / "checkpoint.pt", smoke)
    assert digest == nb.hashlib.sha256((tmp_path / "checkpoint.pt").read_bytes()).hexdigest()
    assert list(loaded) == ["v", "m", "c", "again"] and loaded["v"].seconds == 3.0
    assert (
        loaded["v"].result["log"] == stages[0].result["log"]
        and loaded["c"].result["dream"] == stages[2].result["dream"]
    )
    assert same(loaded["v"].result, stages[0].result) and same(
        loaded["again"].result, stages[1].result
    )
    nb.frozen(nb.V(smoke.v), loaded["v"].result)


def test_pretrained_stages_are_used_and_nothing_is_trained(
    nb, smoke, run_folder, monkeypatch, capsys
):
    small_run(nb, smoke, run_folder)
    ours(nb, monkeypatch, run_folder)
    monkeypatch.setattr(nb, "PRETRAINED", nb.find_pretrained(smoke.but(seed=7)))
    stage = nb.keep(
        nb.train_v, None, name="v", v=smoke.v, seed=7
    )  # without a memory it could not train
    assert stage.seconds == 3.0 and "trained with seed 123" in capsys.readouterr().out


@pytest.mark.parametrize(
    "harm, words",
    [
        (lambda folder: (folder / "checkpoint.pt").write_bytes(b"junk"), "checksum"),
        (
            lambda folder: (folder / "manifest.json").write_text("{}", encoding="utf-8"),
            "checkpoint_sha256",
        ),
        (
            lambda folder: (folder / "manifest.json").write_text("not json", encoding="utf-8"),
            "can't be used",
        ),
    ],
)
def test_unusable_pretrained_checkpoint_is_a_sentence(
    nb, smoke, tmp_path, monkeypatch, capsys, harm, words
):
    small_run(nb, smoke, tmp_path)
    harm(tmp_path)
    ours(nb, monkeypatch, tmp_path)
    assert nb.find_pretrained(smoke) == {}
    said = capsys.readouterr().out
    assert words in said and "trains its own" in said


@pytest.mark.parametrize("profile", ["auto", "quick", "smoke"])
def test_the_shipped_checkpoint_fits_the_profiles_with_a_gpu_too(tmp_path, monkeypatch, profile):
    nb = load_notebook("with_a_gpu")
    monkeypatch.setattr(nb.torch.cuda, "is_available", lambda: True)
    monkeypatch.chdir(ROOT)
    for name, value in {
        "WM_PROFILE": profile,
        "WM_USE_PRETRAINED": "1",
        "WM_RUN_FOLDER": str(tmp_path),
        "WM_OVERRIDES": "",
    }.items():
        monkeypatch.setenv(name, value)
    exec(
        next(source_of(cell) for cell in tagged("run") if cell["id"] == "run-profile"), nb.__dict__
    )
    assert {"v", "m", "practice", "c"} <= nb.PRETRAINED.keys() and nb.settings.m.hidden == 192


def test_what_the_shipped_c_learned_is_shown_whatever_the_settings_of_c(tmp_path, monkeypatch):
    nb, cells = load_notebook("pretrained"), {cell["id"]: source_of(cell) for cell in CELLS}
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("WM_PROFILE", "smoke")
    monkeypatch.setenv("WM_USE_PRETRAINED", "1")
    monkeypatch.setenv("WM_RUN_FOLDER", str(tmp_path))
    monkeypatch.setenv("WM_OVERRIDES", "c.generations=7,evaluate.look_every=300")
    exec(cells["run-profile"], nb.__dict__)
    panels, nb.world = [], None
    nb.plot = lambda *shown, **how: panels.extend(panel["lines"]["_"] for panel in shown)
    for name in ("run-c-settings", "run-looks"):
        exec(cells[name], nb.__dict__)
    assert [len(x) == len(y) for x, y, *_ in panels] == [True, True]
    assert set(nb.look_counts) <= set(nb.all_counts)


def test_pretrained_of_another_size_and_without_a_network(
    nb, smoke, run_folder, monkeypatch, capsys
):
    small_run(nb, smoke, run_folder)
    ours(nb, monkeypatch, run_folder)
    assert (
        nb.find_pretrained(nb.make_settings("smoke", "m.hidden=32")) == {}
        and "m.hidden = 192" in capsys.readouterr().out
    )
    monkeypatch.setattr(nb, "asset", lambda name: None)
    assert nb.find_pretrained(smoke) == {} and "it is not here" in capsys.readouterr().out
