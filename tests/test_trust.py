"""What makes a dream trustworthy: the verifier, drift, remedies; and the runner of many runs."""

import csv
import json
import os

import experiments
import nbformat
import numpy as np
import pytest
from conftest import own_sockets
from nbclient import NotebookClient


def test_auroc_against_counting(nb):
    real, false = nb.torch.tensor([3.0, 1.0, 2.0]), nb.torch.tensor([2.0, 0.0, 0.5, 2.5])
    wins = sum((r > f) + 0.5 * (r == f) for r in real.tolist() for f in false.tolist()) / 12
    assert nb.auroc(real, false) == pytest.approx(wins)


def test_reliability_of_an_honest_and_a_boasting_witness(nb):
    generator = nb.torch.Generator().manual_seed(0)
    trust = nb.torch.rand(20_000, generator=generator)
    truth = nb.torch.rand(20_000, generator=generator) < trust
    assert (
        nb.reliability(trust, truth)[2]
        < 0.02
        < 0.2
        < nb.reliability(nb.torch.full_like(trust, 0.95), truth)[2]
    )


def test_verifier_learns_to_tell_noise(nb, world, tmp_path, monkeypatch):
    monkeypatch.setattr(nb, "VERIFIER_POOL", 2_000)
    slow = world._replace(
        codes=world.codes._replace(mu=0.1 * world.codes.mu)
    )  # codes that move slowly, so that a perturbed one stands out
    nb.nn.init.zeros_(slow.m.change.weight)  # and an M that predicts them
    how = nb.TrainSettings(batch=128, steps=600)
    verifier = nb.frozen(
        nb.Verifier(6, 16), nb.train_verifier(nb.Progress(tmp_path), slow, verifier=how, seed=0)
    )
    now, a, after = nb.real_steps(slow, 300, nb.torch.Generator().manual_seed(1))
    false = nb.false_steps(
        slow.m, now, a, slow.codes.mu[0].std(0), nb.torch.Generator().manual_seed(2)
    )
    assert nb.auroc(verifier(after), verifier(false)) > 0.75
    assert set(nb.unseen_kinds(slow.m, now, a, after, slow.codes.mu[0].std(0))) >= {
        "the world stands still"
    }


def test_real_steps_are_recorded_ones(nb, world):
    def number(rows):
        return {int(world.memory.episode[row % len(world.memory)]) for row in rows}

    now, a, after = nb.real_steps(world, 50, nb.torch.Generator().manual_seed(0))
    z = world.codes.mu.flatten(0, 1)
    rows = [int((z - code).abs().sum(1).argmin()) for code in now.z]
    assert (
        nb.torch.equal(z[rows], now.z)
        and nb.torch.equal(z[[row + 1 for row in rows]], after.z)
        and nb.torch.equal(after.before, now.z)
    )
    assert nb.torch.equal(world.codes.actions.flatten()[rows], a) and (after.blind == 0).all()
    assert number(rows) == {0, 1, 2, 3, 4}, "the first 80 % of six episodes"
    others, _, _ = nb.real_steps(world, 50, nb.torch.Generator().manual_seed(0), held_out=True)
    assert number(int((z - code).abs().sum(1).argmin()) for code in others.z) == {5}


def test_variance_mask_passes_what_is_unsure(nb, world):
    mask, share = nb.variance_mask(world, 0.01, 0)
    assert (
        nb.torch.equal(mask, (share > 0.01).float())
        and nb.variance_mask(world, float(share.max()), 0)[0].sum() == 0
    )


def test_drift_knows_an_honest_and_a_boasting_m(nb, smoke, episodes):
    v = nb.frozen(nb.V(smoke.v))
    m = nb.frozen(nb.M(smoke.v.latents, 16))
    looking = nb.World(v, m, None, None, 4).looking_at(episodes)
    probe = nb.Probe(looking.codes.mu[0], looking.memory.states)
    shares = []
    for log_var in (-16.0, 3.0):
        nb.nn.init.constant_(m.log_var.bias, log_var)
        found = nb.drift(looking, probe, nb.windows(looking.memory, 4 + 3, 20))
        assert (
            all(len(found[name]) == 3 for name in ("theta", "x", "kl", "50", "90"))
            and (found["kl"] >= 0).all()
            and (found["50"] <= found["90"]).all()
        )
        shares.append(float(found["90"].mean()))
    assert shares[0] < 60 < 95 < shares[1]
    assert nb.drift(looking, probe, nb.windows(looking.memory, 4 + 400, 20))["theta"].isnan().all()


def test_who_lives_on(nb, world):
    starts = world.recall(*world.moments(4, nb.torch.Generator().manual_seed(0)))
    z, alive = nb.live_on(world, nb.torch.randn(23), starts, 5)
    assert z.shape == (4, 5, 6) and alive.shape == (4, 5) and (alive[:, 1:] <= alive[:, :-1]).all()


def test_remedy_table_round_trip(nb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nb, "asset", lambda name: None)
    assert nb.read_table("remedies") == []
    monkeypatch.setattr(nb, "asset", lambda name: nb.Path("assets") / name)
    folder = nb.usable_folder(nb.Path("assets") / "experiments")
    nb.write_table(
        folder / "remedies.csv", [{"row": "a, b", "search": 0, "real_mean": 12.5, "farthest": 0.1}]
    )
    assert nb.read_table("remedies") == [
        {"row": "a, b", "search": "0", "real_mean": "12.5", "farthest": "0.1"}
    ]


def test_tables_of_seeds_drop_nothing(nb, monkeypatch, capsys):
    base = {
        "status": "finished",
        "returns": "500 500 480",
        "real_mean": "493.3",
        "real_worst": "480",
    }
    lines = [
        base | {"seed": "1"},
        {"seed": "2", "status": "failed", "returns": "", "real_mean": "", "real_worst": ""},
    ]
    monkeypatch.setattr(nb, "read_table", lambda name: lines)
    nb.show_seeds("main_line_quick")
    nb.plt.close("all")
    printed = capsys.readouterr().out
    assert (
        "seed   2: failed" in printed
        and "1 of 2 seeds reach 475; median 246.7, lowest 0.0" in printed
    )


class Executed:
    """Stands for nbclient: writes a manifest instead of running the notebook, or fails for one
    seed."""

    calls: list = []

    def __init__(self, notebook, timeout, resources, config):
        self.cells = len(notebook.cells)

    def execute(self, env):
        seed = int(env["WM_OVERRIDES"].rpartition("seed=")[2])
        Executed.calls.append(env["WM_OVERRIDES"])
        if seed == 2 and len(Executed.calls) < 4:
            raise RuntimeError("the disk is full")
        manifest = {
            "real_returns": [10.0, 20.0],
            "real_return_mean": 15.0,
            "dream_real": {"spearman": None},
            "probe": {"z": {"random": {"r2": {"theta": 0.9}}}},
            "open_loop_error": {
                "M, seen": {"30": {"theta_degrees": 1.0, "x_metres": 0.01}},
                "M, from z": {"30": {"theta_degrees": 2.0}},
            },
            "real_steps": {"random play, trained on": 5, "looks, only logged": 3},
            "stages": {"v": 20.4, "m": 10.2},
        }
        experiments.Path(env["WM_OUT_FOLDER"], "manifest.json").write_text(
            json.dumps(manifest), encoding="utf-8"
        )


def test_runner_resumes_and_its_files_carry_every_run(monkeypatch, tmp_path):
    monkeypatch.setattr(experiments, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(experiments, "TABLES", tmp_path / "tables")
    monkeypatch.setattr(experiments, "ROOT", tmp_path)
    monkeypatch.setattr(experiments, "NotebookClient", Executed)
    Executed.calls = []

    def table():
        with (tmp_path / "tables" / "smoke.csv").open(newline="", encoding="utf-8") as file:
            return {(line["row"], line["seed"]): line for line in csv.DictReader(file)}

    experiments.main(["smoke"])
    first = table()
    assert len(first) == 4 and len(Executed.calls) == 4
    assert (
        first["as shipped", "2"]["status"] == "failed"
        and "disk is full" in first["as shipped", "2"]["error"]
    )
    assert (
        first["as shipped", "1"]["real_mean"] == "15.0"
        and first["as shipped", "1"]["stage_seconds"] == "31"
        and len(first["as shipped", "1"]["code"]) == 12
    )
    experiments.main(["smoke"])  # only what failed runs again
    assert len(Executed.calls) == 5 and table()["as shipped", "2"]["status"] == "finished"
    experiments.shutil.rmtree(tmp_path / "runs")
    experiments.main(["smoke", "--table"])  # on another machine, the table keeps its lines
    assert len(table()) == 4 and np.isfinite(float(table()["horizon 15", "1"]["real_mean"]))
    experiments.main(["smoke"])  # and what stands in it, made by the same code, is not run again
    assert len(Executed.calls) == 5
    monkeypatch.setattr(experiments, "code_hash", lambda cells: "another code")
    experiments.main(["smoke"])
    assert len(Executed.calls) == 9, "other code, other runs"


def test_kernels_that_start_together_share_no_socket():
    managers = [
        NotebookClient(nbformat.v4.new_notebook(), config=own_sockets()).create_kernel_manager()
        for _ in "12"
    ]
    assert os.name == "nt" or [manager.transport for manager in managers] == ["ipc", "ipc"]
    assert os.name == "nt" or managers[0].ip != managers[1].ip


def test_runs_of_one_seed_never_overlap():
    running, most = [], []

    def work(name, seed, rows):
        assert seed not in running
        running.append(seed)
        most.append(len(running))
        experiments.time.sleep(0.05)
        running.remove(seed)

    experiments.side_by_side([("a", seed, []) for seed in (1, 1, 2, 2, 3)], 2, work)
    assert max(most) == 2 and not running


def test_every_row_of_every_experiment_is_a_valid_setting(nb):
    for experiment in experiments.EXPERIMENTS.values():
        for overrides in experiment.rows.values():
            nb.make_settings(
                experiment.profile, ",".join(filter(None, [experiment.common, overrides, "seed=1"]))
            )


def test_the_hash_of_the_code_ignores_comments_and_docstrings_only():
    def hash_of(source):
        return experiments.code_hash(
            [nbformat.v4.new_code_cell(source), nbformat.v4.new_markdown_cell("text")]
        )

    code = hash_of('def f():\n    """Says."""\n    return 1  # why')
    assert code == hash_of('def f():\n    """Says something else."""\n    return 1')
    assert code != hash_of('def f():\n    """Says."""\n    return 2')
    assert (
        hash_of('x = f"{1}é # no comment"  # why')
        == hash_of('x = f"{1}é # no comment"\n\n# how')
        != hash_of('x = f"{1}é # another"')
    )
    # Text, not a parsed tree, so that a run on one version of Python counts as the same code on
    # another.
    assert (
        experiments.bare_code(
            'def f(a):\n    """Says\n    it."""\n\n    return f"{a!r:>{3}}"  # why'
        )
        == 'def f(a):\n    return f"{a!r:>{3}}"'
    )
