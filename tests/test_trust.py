"""What makes a dream trustworthy: the verifier, the remedies' settings, and the runner of many runs."""

import csv
import json
import math
import types

import experiments
import nbformat
import numpy as np
import pytest


@pytest.fixture
def world(nb):
    """A small random M with its latents, over two recorded episodes."""
    nb.torch.manual_seed(0)
    episodes = nb.play(nb.RandomPolicy(0), nb.seeds_for("random", 0, 6), 2)
    memory = nb.Memory(episodes, 0, nb.DEVICE)
    m = nb.M(6, 16, 4).eval().requires_grad_(False)
    for part in (m.g, m.done):
        nb.nn.init.normal_(part.weight, std=0.3)
    mu = nb.torch.randn(2, len(memory), 6)
    latents = nb.Latents(mu, nb.torch.zeros_like(mu), memory.actions.repeat(2, 1), nb.torch.zeros(2, 6), nb.torch.zeros(2, 6, dtype=bool))
    return memory, m, latents


def start_states(nb, m, count=5):
    return nb.Starts(nb.torch.randn(count, 6), 0.5 * nb.torch.randn(count, m.hidden), 0.5 * nb.torch.randn(count, m.hidden))


def test_ensemble_of_twins_dreams_like_one(nb, world):
    _, m, _ = world
    twins = nb.Ensemble([m, m]).eval()
    one = start_states(nb, m)
    two = nb.Starts(one.z, one.h.repeat(1, 2), one.c.repeat(1, 2))
    a, noise = nb.torch.randint(2, (5,)), nb.torch.randn(5, 6)
    alone = nb.Dreamer(m, nb.torch.ones(6), 1.0).step(*one, a, noise)
    together = nb.Dreamer(twins, nb.torch.ones(6), 1.0).step(*two, a, noise)
    assert nb.torch.allclose(alone.z, together.z, atol=1e-5) and nb.torch.allclose(alone.h.repeat(1, 2), together.h, atol=1e-6)
    assert nb.torch.allclose(alone.survive, together.survive, atol=1e-6)
    z, steps = nb.torch.randn(3, 7, 6), nb.torch.randint(2, (3, 7))
    whole, state = twins(z[:, :4], steps[:, :4])
    rest, _ = twins(z[:, 4:], steps[:, 4:], state)
    assert nb.torch.allclose(nb.torch.cat([whole, rest], 1), twins(z, steps)[0], atol=1e-6), "its memory can be carried on"


def test_ensemble_disagrees_off_the_data(nb, world):
    _, m, _ = world
    nb.torch.manual_seed(1)
    other = nb.M(6, 16, 4).eval().requires_grad_(False)
    both = nb.Ensemble([m, other])
    h = nb.torch.randn(50, 32)

    def extra_variance(scale):
        parts = [member.predict(nb.torch.zeros(50, 6), scale * part) for member, part in zip(both.members, h.chunk(2, -1))]
        said = both.predict(nb.torch.zeros(50, 6), scale * h).log_var.exp()
        return float((said - nb.torch.stack([part.log_var.exp() for part in parts]).mean(0)).mean())

    assert 0 <= extra_variance(0.1) < extra_variance(1.0) < extra_variance(3.0)


def test_dreams_and_reality_recall_alike_with_an_ensemble(nb, world):
    memory, m, latents = world
    both = nb.Ensemble([m, m])
    starts = nb.find_starts(both, memory, latents, 20, nb.torch.Generator().manual_seed(0))
    assert starts.h.shape == (20, 32) and nb.torch.equal(starts.h[:, :16], starts.h[:, 16:])


def test_auroc_against_counting(nb):
    real, false = nb.torch.tensor([3.0, 1.0, 2.0]), nb.torch.tensor([2.0, 0.0, 0.5, 2.5])
    wins = sum((r > f) + 0.5 * (r == f) for r in real.tolist() for f in false.tolist()) / 12
    assert nb.auroc(real, false) == pytest.approx(wins)


def test_reliability_of_an_honest_and_a_boasting_witness(nb):
    generator = nb.torch.Generator().manual_seed(0)
    trust = nb.torch.rand(20_000, generator=generator)
    truth = nb.torch.rand(20_000, generator=generator) < trust
    assert nb.reliability(trust, truth)[2] < 0.02 < 0.2 < nb.reliability(nb.torch.full_like(trust, 0.95), truth)[2]


def test_verifier_learns_and_its_weights_are_probabilities(nb, world, tmp_path):
    memory, m, latents = world
    # Latents that move slowly, so that a perturbed step stands out.
    slow = nb.torch.cumsum(0.01 * nb.torch.randn(latents.mu.shape), 1)
    latents = latents._replace(mu=slow)
    settings = nb.VerifierSettings(units=32, pool=200, batch=64, steps=200)
    result = nb.train_verifier(nb.Progress(tmp_path), m, memory, latents, settings, 0)
    verifier = nb.load_verifier(result, m, 6, settings, nb.DEVICE)
    real = nb.real_steps(m, memory, latents, 300, range(6), nb.torch.Generator().manual_seed(1))
    false = nb.false_steps(m, real, slow[0].std(0), nb.torch.Generator().manual_seed(2))
    trust = verifier(*real[:2], *real[3:])
    assert 0 <= trust.min() and trust.max() <= 1
    assert nb.auroc(trust, verifier(*false[:2], *false[3:])) > 0.8
    step = nb.Dreamer(m, nb.torch.zeros(6), 0.0, verifier).step(real.z, real.h, real.c, real.a)
    assert step.trust.shape == (300,) and 0 <= step.trust.min() <= step.trust.max() <= 1


def test_verifier_and_norm_penalty_lower_the_return(nb, world, smoke):
    _, m, _ = world
    starts = start_states(nb, m)
    pool = nb.Starts(*(nb.torch.randn(200, values.shape[1]) for values in starts))
    space, noise, points = nb.principal_axes(pool, 4), nb.torch.zeros(7, 5, 6), nb.torch.randn(3, 5)

    def returns(c, verifier=None):
        return nb.dream_returns(nb.Dreamer(m, nb.torch.zeros(6), 0.0, verifier), points, space, space, starts, noise, c)

    plain = returns(smoke.c)
    # The same reward for every step: then half the trust is half the reward.
    nb.nn.init.zeros_(m.reward.weight)
    nb.nn.init.ones_(m.reward.bias)
    only_steps = nb.dataclasses.replace(smoke.c, last_worth=0.0)
    half = returns(only_steps, lambda z, h, a, z_next: nb.torch.full((len(z),), 0.5))
    assert nb.torch.allclose(2 * half, returns(only_steps), atol=1e-5)
    penalised = returns(nb.dataclasses.replace(only_steps, norm_penalty=0.1))
    twice = returns(nb.dataclasses.replace(only_steps, norm_penalty=0.2))
    lost = returns(only_steps) - penalised
    assert (lost > 0).all() and nb.torch.allclose(returns(only_steps) - twice, 2 * lost, atol=1e-4)
    assert plain.shape == (3, 5)


def test_c_reads_only_what_it_may(nb, world, smoke):
    memory, m, latents = world
    for sees, unread in (("z", slice(6, None)), ("h", slice(0, 6))):
        c = nb.dataclasses.replace(smoke.c, sees=sees, look_ahead=2, predictable_axes=3, growing_axes=1)
        _, axes, _ = nb.search_space(m, memory, latents, c, 0)
        assert axes.directions[unread].abs().max() < 1e-6 < axes.directions.abs().max()
    with pytest.raises(ValueError, match="c.look_ahead = 90"):
        nb.search_space(m, memory, latents, nb.dataclasses.replace(smoke.c, look_ahead=90), 0)
    with pytest.raises(ValueError, match="c.sees.*choose one of zh, z, h"):
        nb.make_settings("smoke", "c.sees=x")


def test_hidden_layer_by_hand_and_in_the_search_space(nb):
    features = nb.torch.randn(2, 9, 3)
    units = 4
    weights = nb.torch.randn(2, units * 5 + 1)
    for p in range(2):
        first = weights[p, : units * 4].view(units, 4)
        score = nb.torch.tanh(features[p] @ first[:, :3].T + first[:, 3]) @ weights[p, units * 4 : -1] + weights[p, -1]
        assert nb.torch.equal(nb.act(weights, features)[p], (score > 0).long())
    pool = nb.Starts(nb.torch.randn(200, 6), nb.torch.randn(200, 16), nb.torch.randn(200, 16))
    space = nb.principal_axes(pool, 4)
    points = nb.torch.randn(3, units * 6 + 1)
    inside = nb.act(points, nb.coordinates(space, pool.z, pool.h)[None].expand(3, -1, -1))
    plain = nb.act(nb.to_weights(space, points), nb.torch.cat([pool.z, pool.h], 1)[None].expand(3, -1, -1))
    assert (inside == plain).float().mean() > 0.99


def test_latent_dropout_hides_a_share_of_z_from_c_alone(nb, world, smoke):
    _, m, _ = world
    starts = start_states(nb, m)
    pool = nb.Starts(*(nb.torch.randn(200, values.shape[1]) for values in starts))
    space = nb.principal_axes(pool, 4)
    hidden = nb.torch.zeros(5, 6, dtype=bool)
    hidden[:, :3] = True
    blind = nb.place_of(space, starts.z, starts.h, hidden)
    other = starts.z.clone()
    other[:, :3] += 1.0
    assert nb.torch.equal(blind, nb.place_of(space, other, starts.h, hidden))
    assert not nb.torch.equal(nb.place_of(space, starts.z, starts.h), blind)
    noise, points = nb.torch.randn(7, 5, 6), nb.torch.randn(3, 5)
    c, dreamer = nb.dataclasses.replace(smoke.c, latent_dropout=0.5), nb.Dreamer(m, nb.torch.zeros(6), 0.0)
    dropped = nb.dream_returns(dreamer, points, space, space, starts, noise, c)
    assert nb.torch.allclose(dropped, nb.dream_returns(dreamer, points, space, space, starts, noise, c))
    assert not nb.torch.allclose(dropped, nb.dream_returns(dreamer, points, space, space, starts, noise, smoke.c))


def test_a_judge_reads_a_controller_as_reality_does_and_hides_numbers_as_training_does(nb, world, smoke, monkeypatch):
    _, m, _ = world
    pool = nb.Starts(*(nb.torch.randn(200, size) + 2 for size in (6, m.hidden, m.hidden)))
    home, controllers = nb.principal_axes(pool, 4), nb.torch.randn(2, 6 + m.hidden + 1)
    seen, dream_returns = [], nb.dream_returns

    def watched(dreamer, points, axes, *others):
        seen.append((points, axes))
        return dream_returns(dreamer, points, axes, *others)

    monkeypatch.setattr(nb, "dream_returns", watched)
    nb.judge(nb.Dreamer(m, nb.torch.zeros(6), 0.0), controllers, pool, home, nb.dataclasses.replace(smoke.c, latent_dropout=0.5), 1)
    [(points, axes)] = seen
    features = nb.torch.cat([pool.z, pool.h], 1)[None].expand(2, -1, -1)
    inside = nb.act(points, nb.coordinates(axes, pool.z, pool.h)[None].expand(2, -1, -1))
    assert (inside == nb.act(controllers, features)).float().mean() > 0.99
    assert nb.torch.allclose(axes.mean[:6], pool.z.mean(0), atol=1e-5)  # what a hidden number of z becomes


def test_find_liar(nb):
    assert nb.find_liar([29.0, 20.0, 29.5, 28.9], [300, 5, 400, 120]) == 3


def test_the_last_moments_of_a_short_episode_still_leave_a_step_to_dream(nb, smoke):
    v = nb.V(smoke.v).eval().requires_grad_(False)
    m = nb.M(smoke.v.latents, 16, 4).eval().requires_grad_(False)
    one_way = nb.torch.zeros(smoke.v.latents + 16 + 1) + nb.torch.eye(smoke.v.latents + 16 + 1)[-1]
    lived, z, begin = nb.last_moments(v, m, one_way, 1, 30, 100)
    steps = len(lived) - 1
    assert len(z) == len(lived) and steps < 30, "a cart that is always pushed one way falls soon"
    dreamer = nb.Dreamer(m, nb.torch.zeros(smoke.v.latents), 0.0)
    path, alive = nb.dream_acting(dreamer, one_way, nb.at_row(m, z, lived.actions, begin), steps - begin)
    assert path.shape[:2] == alive.shape == (1, steps - begin) and begin >= 1 and steps - begin >= 1


def test_drift_of_a_perfect_witness(nb, smoke, memory):
    v = nb.V(smoke.v).eval().requires_grad_(False)
    m = nb.M(smoke.v.latents, 16, 4).eval().requires_grad_(False)
    z, _ = nb.encode_rows(v, memory, nb.torch.arange(len(memory)))
    found = nb.drift(v, m, memory, nb.Probe(z, memory.states), 3, 20)
    assert all(len(found[name]) == 3 for name in ("theta", "x", "kl", "inside_50", "inside_90"))
    assert (found["inside_50"] <= found["inside_90"]).all() and (found["kl"] >= 0).all()


def test_the_causes_of_drift_are_told_apart(nb, smoke, memory):
    v = nb.V(smoke.v).eval().requires_grad_(False)
    m = nb.M(smoke.v.latents, 16, 4).eval().requires_grad_(False)
    z, _ = nb.encode_rows(v, memory, nb.torch.arange(len(memory)))
    probe = nb.Probe(nb.seen_again(v, z[None])[0], memory.states)
    found = {read: nb.angle_errors(v, m, memory, probe, 2, read, longest=8, count=20) for read in (2, 8)}
    assert found[2][1] == pytest.approx(found[8][1], abs=1e-4), "the same moments are looked at, however many steps were read"
    aside = nb.angle_errors(v, m, memory, probe, 2, 2, memory.max_shift, longest=8, count=20)
    assert aside[1] != pytest.approx(found[2][1], abs=1e-4), "seen from the side, V sees something else"
    rows = nb.windows(memory, 10, 20, nb.torch.Generator().manual_seed(0))
    rounded = nb.rounding_error(m, z[rows], memory.actions[rows], probe)
    assert rounded.shape == (6,) and 0 <= rounded.max() < 0.1
    assert next(m.parameters()).dtype == nb.torch.float32, "M itself stays as it was"


def test_rule_on_probe_is_the_rule(nb):
    states = nb.torch.randn(400, 4)
    features = states @ nb.torch.randn(4, 10)
    probe = nb.Probe(features, states, ridge=1e-9)
    weights = nb.rule_on_probe(probe, 15)
    acts = nb.act(weights[None], nb.torch.cat([features, nb.torch.randn(400, 5)], 1)[None])[0]
    wanted = (states @ nb.torch.tensor([0.1, 0.2, 1.0, 0.4]) > 0).long()
    assert (acts == wanted).float().mean() > 0.98


class Executed:
    """Stands for nbclient: writes a manifest instead of running the notebook, or fails for one seed."""

    calls: list = []

    def __init__(self, notebook, timeout, resources):
        self.cells = len(notebook.cells)

    def execute(self, env):
        seed = int(env["WM_OVERRIDES"].rpartition("seed=")[2])
        Executed.calls.append(env["WM_OVERRIDES"])
        if seed == 2 and len(Executed.calls) < 4:
            raise RuntimeError("the disk is full")
        manifest = {
            "real_returns": [10.0, 20.0], "real_return_mean": 15.0, "dream_real": {"pairs": [[29.0, 15.0]], "spearman": math.nan},
            "probe_r2": {"z": {"random": {"theta": 0.9}}}, "open_loop_error": {"M": {"30": {"theta_degrees": 1.0}}},
            "real_steps": {"random": 5, "on_policy": 0, "checks": 3}, "stages": {"v": 20.4, "m": 10.2},
        }  # fmt: skip
        experiments.Path(env["WM_OUT_FOLDER"], "manifest.json").write_text(json.dumps(manifest))
        experiments.Path(env["WM_OUT_FOLDER"], "gaps.json").write_text(json.dumps({"first 30 steps": 0.5, "any 30 steps": -0.25}))


def test_runner_resumes_and_its_files_carry_every_run(monkeypatch, tmp_path):
    monkeypatch.setattr(experiments, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(experiments, "TABLES", tmp_path / "tables")
    monkeypatch.setattr(experiments, "ROOT", tmp_path)
    monkeypatch.setattr(experiments, "NotebookClient", Executed)
    Executed.calls = []

    def table():
        with (tmp_path / "tables" / "smoke.csv").open(newline="") as file:
            return {(line["row"], line["seed"]): line for line in csv.DictReader(file)}

    experiments.main(["smoke"])
    first = table()
    assert len(first) == 4 and len(Executed.calls) == 4
    assert first["as shipped", "2"]["status"] == "failed" and "disk is full" in first["as shipped", "2"]["error"]
    assert first["as shipped", "1"]["real_mean"] == "15.0" and first["as shipped", "1"]["stage_seconds"] == "31" and len(first["as shipped", "1"]["code"]) == 12
    assert first["as shipped", "1"]["gap_first"] == "0.5" and first["as shipped", "1"]["gap_any"] == "-0.25"
    experiments.main(["smoke"])  # only what failed runs again
    assert len(Executed.calls) == 5 and table()["as shipped", "2"]["status"] == "finished"
    experiments.shutil.rmtree(tmp_path / "runs")
    experiments.main(["smoke", "--table"])  # on another machine, the table keeps its lines
    assert len(table()) == 4 and np.isfinite(float(table()["horizon 15", "1"]["real_mean"]))
    experiments.main(["smoke"])  # and what stands in it, made by the same code, is not run again
    assert len(Executed.calls) == 5
    monkeypatch.setattr(experiments, "code_hash", lambda cells: "another code")
    experiments.main(["smoke", "--seeds", "1"])
    assert len(Executed.calls) == 7


def test_an_error_without_a_message_leaves_a_line_as_well(monkeypatch, tmp_path):
    class Killed(Executed):
        def execute(self, env):
            raise TimeoutError

    for name, value in {"RUNS": tmp_path / "runs", "TABLES": tmp_path / "tables", "ROOT": tmp_path, "NotebookClient": Killed}.items():
        monkeypatch.setattr(experiments, name, value)
    experiments.main(["smoke", "--seeds", "1"])
    assert [line["error"].strip() for line in experiments.lines_of("smoke").values()] == ["TimeoutError:"] * 2


def test_runs_of_one_seed_never_overlap_and_none_is_lost():
    running, done, overlaps, lock = set(), [], [], experiments.threading.Lock()

    def work(name, seed, rows):
        with lock:
            overlaps.append(seed in running)
            running.add(seed)
            most.append(len(running))
        experiments.time.sleep(0.02)
        with lock:
            running.discard(seed)
            done.append((name, seed))

    most: list[int] = []
    chains = [(name, seed, ["row"]) for name in ("a", "b") for seed in (1, 2, 3)]
    experiments.side_by_side(chains, 2, work)
    assert sorted(done) == sorted((name, seed) for name, seed, _ in chains)
    assert not any(overlaps) and max(most) == 2
    experiments.side_by_side([], 3, work)


def test_what_the_runner_keeps_of_the_notebook_measures_the_gap_and_every_row_is_a_valid_setting(nb):
    cells = nbformat.read(experiments.NOTEBOOK, 4).cells
    kept = "\n".join(cell.source for cell in cells if "gap" in cell.metadata.get("tags", []))
    assert "def dream_acting" in kept and 'gaps = {"first 30 steps"' in kept and '"any 30 steps"' in kept
    for experiment in experiments.EXPERIMENTS.values():
        for overrides in experiment.rows.values():
            nb.make_settings(experiment.profile, ",".join(filter(None, [experiment.common, overrides, "seed=1"])))


def test_one_real_check_is_enough_to_compare_dreams_with_life(nb):
    # What the runs of the remedies do: one controller is checked, at the end. A correlation of one pair is not a number, and no error.
    source = next(cell.source for cell in nbformat.read(experiments.NOTEBOOK, 4).cells if cell.id == "pairs-run")
    checked = {"dream": [28.0], "real": [[500, 400]], "updates": [4_800]}
    names = vars(nb) | {"settings": nb.make_settings("quick", experiments.DREAM), "rounds": [{"c": types.SimpleNamespace(result=checked)}]}
    exec(source, names)
    names["figure"].canvas.draw()  # a scale of colours with a single value, too, must be drawn
    nb.plt.close("all")
    assert names["pairs"] == [(28.0, 450.0)] and math.isnan(names["spearman"]) and names["late"] == []


def lines_of_runs():
    """Two rows of an experiment: one with a good seed and a failed run, one with two very different seeds."""
    base = {"dream_return": "30", "gap_any": "", "random_steps": "1000", "on_policy_steps": "0", "status": "finished"}
    return [
        base | {"row": "a", "seed": "1", "real_mean": "500.0", "returns": "500 500 500"},
        base | {"row": "a", "seed": "2", "status": "failed", "real_mean": "", "returns": ""},
        base | {"row": "b", "seed": "1", "real_mean": "100.0", "returns": "100 90 110"},
        base | {"row": "b", "seed": "2", "real_mean": "300.0", "returns": "300 310 290"},
    ]


def test_tables_of_many_runs_drop_nothing_and_their_intervals_span_the_seeds(nb, capsys):
    lines = lines_of_runs()
    low, high = nb.interval_over_seeds(lines[2:])
    assert 90 <= low < 110 and 290 < high <= 310 and nb.interval_over_seeds(lines[:1]) == (500, 500)
    nb.print_runs(lines)
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].split()[:4] == ["a", "1", "1", "500.0"] and printed[2].split()[:4] == ["b", "2", "0", "200.0"] and printed[2].endswith("100, 300")
    nb.print_runs([])
    nb.draw_runs([], "nothing")
    assert capsys.readouterr().out == ""
    nb.print_runs([lines[1]])
    assert capsys.readouterr().out.splitlines()[1].split() == ["a", "0", "1"], "a row in which every run failed is shown as such"


def test_a_missing_table_is_a_sentence(nb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert nb.runs_of("remedies") == [] and "python tests/experiments.py remedies makes it" in capsys.readouterr().out


def test_the_hash_of_the_code_ignores_comments_and_docstrings_only():
    def hash_of(source):
        return experiments.code_hash([nbformat.v4.new_code_cell(source), nbformat.v4.new_markdown_cell("text")])

    code = hash_of('def f():\n    """Says."""\n    return 1  # why')
    assert code == hash_of('def f():\n    """Says something else."""\n    return 1')
    assert code != hash_of('def f():\n    """Says."""\n    return 2')
    assert hash_of('x = f"{1}é # no comment"  # why') == hash_of('x = f"{1}é # no comment"\n\n# how') != hash_of('x = f"{1}é # another"')
    # Text, not a parsed tree, so that a run on one version of Python counts as the same code on another.
    assert experiments.bare_code('def f(a):\n    """Says\n    it."""\n\n    return f"{a!r:>{3}}"  # why') == 'def f(a):\n    return f"{a!r:>{3}}"'


def test_a_looking_dream_stays_among_what_v_draws(nb, smoke):
    nb.torch.manual_seed(0)
    v = nb.V(smoke.v).eval().requires_grad_(False)
    m = nb.M(smoke.v.latents, 16, 4).eval().requires_grad_(False)
    starts = nb.Starts(nb.torch.randn(5, smoke.v.latents), nb.torch.randn(5, 16), nb.torch.randn(5, 16))
    a, still = nb.torch.randint(2, (5,)), nb.torch.zeros(smoke.v.latents)
    closed, looking = nb.Dreamer(m, still, 0.0).step(*starts, a), nb.LookingDreamer(v, m, still, 0.0).step(*starts, a)
    assert nb.torch.allclose(looking.z, v.encode(v.decode(closed.z))[0], atol=1e-4)
    assert nb.torch.equal(looking.h, closed.h) and nb.torch.equal(looking.survive, closed.survive)


def test_dreams_that_others_go_on_from_look_where_they_are_asked_to(nb, run_folder, smoke, monkeypatch):
    v, m = nb.V(smoke.v).eval().requires_grad_(False), nb.M(smoke.v.latents, 16, 4).eval().requires_grad_(False)
    seen, nothing = [], lambda *all: (None, None, None)
    monkeypatch.setitem(nb.learn_in_dream.__globals__, "search_space", nothing)
    monkeypatch.setitem(nb.learn_in_dream.__globals__, "train_c", lambda *all: seen.append((all[1], all[-1])) or {})
    memory = type("Memory", (), {"episode": nb.torch.zeros(3), "__len__": lambda self: 3})()
    for look in (True, False):
        c = nb.dataclasses.replace(smoke.c, look=look)
        nb.learn_in_dream(nb.Progress(run_folder / "c"), v, m, memory, None, nb.torch.ones(smoke.v.latents), c=c, workers=1, seed=1)
    (judged, looks), (_, closed) = seen
    assert isinstance(looks, nb.LookingDreamer) and looks.v is v and looks.temperature == 0 and closed is None
    assert not isinstance(judged, nb.LookingDreamer)  # the steps that are judged are dreamed with the eyes closed
