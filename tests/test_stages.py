"""Stages: keys, caching, resuming, broken files."""

import pytest
from conftest import load_notebook


class Interrupted(Exception):
    """Stands for a kill in the middle of a stage."""


def same(a, b) -> bool:
    """Two stage results hold the same weights."""
    return a["weights"].keys() == b["weights"].keys() and all((a["weights"][name] == b["weights"][name]).all() for name in a["weights"])


def interrupt_after(nb, monkeypatch, saves: int):
    """Make the stage die right after its n-th save."""
    real, count = nb.Progress.save, []

    def save(self, state):
        real(self, state)
        count.append(1)
        if len(count) == saves:
            raise Interrupted

    monkeypatch.setattr(nb.Progress, "save", save)


@pytest.fixture
def v_settings(nb, smoke):
    """V for a few steps."""
    return nb.dataclasses.replace(smoke.v, steps=9, batch=8, save_every=3)


def test_key_changes_with_settings_code_and_earlier_stages(nb, smoke):
    key = nb.stage_key(nb.train_v, {"v": smoke.v, "seed": 1})
    assert key == nb.stage_key(nb.train_v, {"v": smoke.v, "seed": 1})
    assert key != nb.stage_key(nb.train_v, {"v": smoke.v, "seed": 2})
    assert key != nb.stage_key(nb.train_v, {"v": nb.dataclasses.replace(smoke.v, steps=31), "seed": 1})
    assert key == nb.stage_key(nb.train_v, {"v": nb.dataclasses.replace(smoke.v, save_every=7), "seed": 1})
    before = nb.Stage("collect", "abc", None, 0.0, {})
    assert key != nb.stage_key(nb.train_v, {"v": smoke.v, "seed": 1}, (before,))


def test_key_follows_code_at_any_depth_but_not_comments(nb, smoke):
    settings = {"v": smoke.v, "seed": 1}
    key, m_key = nb.stage_key(nb.train_v, settings), nb.stage_key(nb.train_m, settings)
    deep = load_notebook(
        "deep_change", lambda source: source.replace("0.5 * (mu.square() + log_var.exp() - 1 - log_var)", "0.6 * (mu.square() + log_var.exp() - 1 - log_var)")
    )
    assert deep.stage_key(deep.train_v, settings) != key
    assert deep.stage_key(deep.train_m, settings) == m_key  # M does not use the KL
    for old, new in (("PIXEL_SCALE = 8.0", "PIXEL_SCALE = 9.0"), ("BAND = slice(24, 56)", "BAND = slice(23, 55)")):
        constant = load_notebook("constant_change", lambda source, old=old, new=new: source.replace(old, new))
        assert constant.stage_key(constant.train_v, settings) != key, new
    comment = load_notebook(
        "comment_change", lambda source: source.replace('"""Train V on single', '"""Do train V on single').replace("def train_v(", "# a remark\ndef train_v(")
    )
    assert comment.stage_key(comment.train_v, settings) == key


def test_a_finished_stage_is_not_run_again(nb, run_folder, v_settings, memory, monkeypatch):
    first = nb.run_stage("v", nb.train_v, {"v": v_settings, "seed": 1}, (), memory)
    monkeypatch.setattr(nb.torch.optim, "Adam", None)  # from here on, training would fail
    again = nb.run_stage("v", nb.train_v, {"v": v_settings, "seed": 1}, (), memory)
    assert same(first.result, again.result) and again.seconds == first.seconds
    with pytest.raises(TypeError):
        nb.run_stage("v", nb.train_v, {"v": v_settings, "seed": 2}, (), memory)


@pytest.mark.parametrize("law", [0.0, 20.0])
def test_resumed_v_equals_uninterrupted_v(nb, run_folder, v_settings, memory, monkeypatch, law):
    def train(folder):
        progress = nb.Progress(run_folder / folder)
        return nb.train_v_with_law(progress, memory, v_settings, nb.LawSettings(weight=law), 1) if law else nb.train_v(progress, memory, v_settings, 1)

    whole = train("whole")
    with monkeypatch.context() as patch:
        interrupt_after(nb, patch, 2)
        with pytest.raises(Interrupted):
            train("cut")
    assert (run_folder / "cut" / "progress.pt").exists()
    resumed = train("cut")
    assert same(whole, resumed) and whole["log"] == resumed["log"]


def encoded(nb, memory, copies=2):
    """Latents that need no V."""
    generator = nb.torch.Generator().manual_seed(0)
    shape = (copies, len(memory), 6)
    return nb.Latents(
        nb.torch.randn(shape, generator=generator), nb.torch.full(shape, -4.0), memory.actions.repeat(copies, 1), nb.torch.zeros(copies, 6, dtype=int), nb.torch.zeros(copies, 6, dtype=bool)
    )  # fmt: skip


@pytest.mark.parametrize("practice", [False, True])
def test_resumed_m_equals_uninterrupted_m_and_seeds_matter(nb, run_folder, smoke, memory, monkeypatch, practice):
    settings, latents = nb.dataclasses.replace(smoke.m, steps=8, save_every=3, hidden=16), encoded(nb, memory)
    whole = nb.train_m(nb.Progress(run_folder / "whole"), memory, latents, m=settings, practice=practice, seed=1)
    assert same(whole, nb.train_m(nb.Progress(run_folder / "twin"), memory, latents, m=settings, practice=practice, seed=1))
    assert not same(whole, nb.train_m(nb.Progress(run_folder / "other"), memory, latents, m=settings, practice=practice, seed=2))
    with monkeypatch.context() as patch:
        interrupt_after(nb, patch, 1)
        with pytest.raises(Interrupted):
            nb.train_m(nb.Progress(run_folder / "cut"), memory, latents, m=settings, practice=practice, seed=1)
    assert same(whole, nb.train_m(nb.Progress(run_folder / "cut"), memory, latents, m=settings, practice=practice, seed=1))


def test_practice_settings_leave_teacher_forcing_alone(nb):
    as_is, changed = nb.make_settings("full").m, nb.make_settings("full", "m.practice_steps=500,m.practice_batch=7,m.alone=20").m
    assert changed.forced == as_is.forced and changed.practised != as_is.practised
    assert (changed.practised.steps, changed.practised.batch, changed.practised.alone) == (500, 7, 20)
    assert nb.make_settings("full", "m.window=20").m.forced != as_is.forced


def test_more_rounds_begin_with_the_saved_ones(nb):
    one, three = (nb.make_settings("full", f"c.rounds={number},c.enough={enough}").c for number, enough in ((1, 500), (3, 400)))
    assert one != three and one.of_one_round == three.of_one_round
    assert nb.make_settings("full", "c.round_episodes=10").c.of_one_round != three.of_one_round


def test_a_mirror_image_is_the_same_episode_in_a_copy_that_is_mirrored_the_other_way(nb):
    mirror = nb.torch.tensor([[False, False, True], [True, False, False], [True, False, True], [False, False, False]])  # (K, E)
    latents = nb.Latents(*[None] * 4, mirror)
    generator = nb.torch.Generator().manual_seed(0)
    copy_number, episode = nb.torch.randint(4, (500,), generator=generator), nb.torch.randint(3, (500,), generator=generator)
    other = nb.mirror_images(latents, copy_number, episode, generator)
    lonely = episode == 1  # this one is mirrored nowhere
    assert (mirror[other, episode] != mirror[copy_number, episode])[~lonely].all() and (other == copy_number)[lonely].all()
    assert set(other[(episode == 0) & (copy_number == 0)].tolist()) == {1, 2}  # any of the candidates, not always the first


@pytest.mark.parametrize("practice", [False, True])
def test_half_of_a_practice_batch_are_mirror_images(nb, run_folder, smoke, memory, monkeypatch, practice):
    latents, seen, losses = encoded(nb, memory), [], nb.m_losses
    latents = latents._replace(mu=latents.mu[:1].repeat(2, 1, 1), actions=nb.torch.stack([memory.actions, 1 - memory.actions]))
    latents.mirror[1] = True
    monkeypatch.setitem(nb.train_m.__globals__, "m_losses", lambda model, z, a, *rest: (seen.append((z, a)), losses(model, z, a, *rest))[1])
    settings = nb.dataclasses.replace(smoke.m, steps=3, hidden=16, batch=8)
    nb.train_m(nb.Progress(run_folder / "m"), memory, latents, m=settings, practice=practice, seed=1)
    for z, a in seen:
        pairs = nb.torch.equal(z[:4], z[4:]) and nb.torch.equal(a[:4], 1 - a[4:])
        assert len(z) == 8 and pairs == practice


def test_resumed_c_equals_uninterrupted_c(nb, run_folder, smoke, monkeypatch):
    from test_models import make_dream

    settings = nb.dataclasses.replace(smoke.c, generations=6, population=8, check_every=16, check_first=1)
    dreamer, _, space, home = make_dream(nb)
    pool = nb.Starts(nb.torch.randn(40, 6), nb.torch.randn(40, 16), nb.torch.randn(40, 16))
    checked = []

    def check(weights):
        checked.append(weights)
        return [float(len(checked))]

    def learn(folder):
        return nb.train_c(nb.Progress(run_folder / folder), dreamer, pool, space, home, check, settings, 1)

    whole = learn("whole")
    assert whole["updates"] == [8, 16, 32, 48] and whole["returns"].shape == (6, 8) and len(checked) == 4
    with monkeypatch.context() as patch:
        interrupt_after(nb, patch, 3)
        with pytest.raises(Interrupted):
            learn("cut")
    checked.clear()
    resumed = learn("cut")
    assert len(checked) == 1  # only the missing check was played
    assert nb.torch.equal(whole["weights"], resumed["weights"]) and nb.torch.equal(whole["returns"], resumed["returns"])


@pytest.mark.parametrize("content", [b"", b"not a save", b"PK\x03\x04 half a zip"])
def test_broken_file_is_said_and_set_aside(nb, tmp_path, capsys, content):
    path = tmp_path / "result.pt"
    path.write_bytes(content)
    assert nb.load_or_set_aside(path) is None
    assert "could not be read" in capsys.readouterr().out
    (aside,) = tmp_path.iterdir()
    assert aside.read_bytes() == content and aside.name.startswith("result.pt.unreadable")


def test_pickled_code_is_never_run(nb, tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("harm").touch, ())

    path = tmp_path / "result.pt"
    path.write_bytes(pickle.dumps(Evil()))
    assert nb.load_or_set_aside(path) is None and not (tmp_path / "harm").exists()


def test_full_disk_is_a_sentence_and_leaves_no_half_file(nb, tmp_path, monkeypatch):
    nb.save_atomically({"a": 1}, tmp_path / "result.pt")
    before = (tmp_path / "result.pt").read_bytes()

    def no_space(value, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nb.torch, "save", no_space)
    with pytest.raises(RuntimeError, match="Free some disk space"):
        nb.save_atomically({"a": 2}, tmp_path / "result.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["result.pt"] and (tmp_path / "result.pt").read_bytes() == before


def small_world(nb, smoke, folder):
    """A checkpoint with one stage of each kind of value."""
    v, m = nb.V(smoke.v).eval(), nb.M(smoke.v.latents, smoke.m.hidden, smoke.m.context)
    stages = [
        nb.Stage("v", "k", folder, 3.0, {"weights": dict(v.state_dict()), "log": {"step": [0, 1], "loss": [2.5, 1.5]}}),
        nb.Stage("m", "k", folder, 2.0, {"weights": dict(m.state_dict())}),
        nb.Stage("c", "k", folder, 1.0, {"weights": nb.torch.randn(2, 5), "real": [[9.0, 10.0], [11.0, 12.0]], "parts": ["a"]}),
    ]
    digest = nb.save_checkpoint(folder / "checkpoint.safetensors", stages, smoke)
    (folder / "manifest.json").write_text(nb.json.dumps({"checkpoint_sha256": digest}))
    return stages, digest


def test_checkpoint_round_trip(nb, smoke, tmp_path):
    stages, digest = small_world(nb, smoke, tmp_path)
    loaded = nb.load_checkpoint(tmp_path / "checkpoint.safetensors", smoke)
    assert digest == nb.hashlib.sha256((tmp_path / "checkpoint.safetensors").read_bytes()).hexdigest()
    assert list(loaded) == ["v", "m", "c"] and loaded["v"].seconds == 3.0
    assert loaded["v"].result["log"] == stages[0].result["log"] and loaded["c"].result["real"] == stages[2].result["real"]
    assert same(loaded["v"].result, stages[0].result) and same(loaded["m"].result, stages[1].result)
    nb.load_v(loaded["v"].result, smoke.v, nb.DEVICE)


def test_checkpoint_of_stages_that_share_tensors(nb, smoke, tmp_path):
    stages, _ = small_world(nb, smoke, tmp_path)
    nb.save_checkpoint(tmp_path / "twice.safetensors", [stages[0], stages[0]._replace(name="again")], smoke)
    loaded = nb.load_checkpoint(tmp_path / "twice.safetensors", smoke)
    assert same(loaded["again"].result, loaded["v"].result)


def test_pretrained_stages_are_used_and_nothing_is_trained(nb, smoke, run_folder, monkeypatch):
    small_world(nb, smoke, run_folder)
    monkeypatch.setattr(nb, "REFERENCE", run_folder)
    monkeypatch.setattr(nb, "PRETRAINED", nb.find_pretrained(smoke))
    stage = nb.run_stage("v", nb.train_v, {"v": smoke.v, "seed": 1}, (), None)  # without a memory it could not train
    assert stage.seconds == 3.0 and stage.key.startswith("pretrained")


@pytest.mark.parametrize(
    "harm, words",
    [
        (lambda folder: (folder / "checkpoint.safetensors").write_bytes(b"junk"), "checksum"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "checkpoint_sha256"),
        (lambda folder: (folder / "manifest.json").write_text("not json"), "can't be used"),
    ],
)
def test_unusable_pretrained_checkpoint_is_a_sentence(nb, smoke, tmp_path, monkeypatch, capsys, harm, words):
    small_world(nb, smoke, tmp_path)
    harm(tmp_path)
    monkeypatch.setattr(nb, "REFERENCE", tmp_path)
    assert nb.find_pretrained(smoke) == {}
    said = capsys.readouterr().out
    assert words in said and "trains its own" in said


def test_pretrained_of_another_size_is_a_sentence(nb, smoke, tmp_path, monkeypatch, capsys):
    small_world(nb, smoke, tmp_path)
    monkeypatch.setattr(nb, "REFERENCE", tmp_path)
    assert nb.find_pretrained(nb.make_settings("smoke", "m.hidden=32")) == {}
    assert "m.hidden = 256" in capsys.readouterr().out


def test_pretrained_without_a_network_is_a_sentence(nb, smoke, run_folder, monkeypatch, capsys):
    def no_network(*_, **__):
        raise nb.urllib.request.URLError("no network")

    monkeypatch.setattr(nb, "REFERENCE", run_folder / "nowhere")
    monkeypatch.setattr(nb.urllib.request, "urlopen", no_network)
    assert nb.find_pretrained(smoke) == {}
    assert "no network" in capsys.readouterr().out


def test_foreign_checkpoint_is_refused(nb, smoke, tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes(b"junk")
    with pytest.raises(ValueError, match="not a checkpoint"):
        nb.load_checkpoint(tmp_path / "checkpoint.safetensors", smoke)


def test_full_disk_is_said_in_a_sentence(nb, run_folder):
    def full(progress):
        raise OSError(nb.errno.ENOSPC, "No space left on device")

    def other(progress):
        raise OSError(nb.errno.EACCES, "not allowed")

    for function in (full, other):
        function.__module__ = nb.__name__
    with pytest.raises(RuntimeError, match="no space left in .*WM_RUN_FOLDER"):
        nb.run_stage("collect", full, {})
    with pytest.raises(PermissionError):
        nb.run_stage("collect", other, {})
