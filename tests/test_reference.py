"""The run that ships: prose, manifest, checkpoint and committed outputs belong together."""

import hashlib
import json
import re

import numpy as np
import pytest
from conftest import CELLS, ROOT, source_of

FOLDER = ROOT / "assets" / "quick_run"
README = (ROOT / "README.md").read_text(encoding="utf-8")
TITLE = source_of(CELLS[0])


@pytest.fixture(scope="module")
def manifest():
    """The numbers of the run."""
    return json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))


def outputs() -> str:
    """All text that the notebook's cells printed."""
    return "".join(
        "".join(output.get("text", "")) for cell in CELLS for output in cell.get("outputs", [])
    )


def test_manifest_is_complete_and_consistent(manifest):
    assert {
        "versions",
        "hardware",
        "stages",
        "parameters",
        "baseline_returns",
        "open_loop_error",
        "latent_kl",
        "dream_real",
        "dream_steps_per_s",
    } <= set(manifest)
    assert manifest["profile"] == "quick" and manifest["seed"] == 123
    assert len(manifest["real_returns"]) == 100 and np.mean(
        manifest["real_returns"]
    ) == pytest.approx(manifest["real_return_mean"])
    assert manifest["real_steps"]["looks, only logged"] <= 10_000
    assert (
        hashlib.sha256((FOLDER / "checkpoint.pt").read_bytes()).hexdigest()
        == manifest["checkpoint_sha256"]
    )
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 12e6
    for features in ("z", "(z, h)"):
        for play in ("random", "controller"):
            for score in manifest["probe"][features][play].values():
                assert set(score) == {"x", "x_dot", "theta", "theta_dot"}


def test_prose_has_the_manifests_numbers(manifest):
    mean, random = (
        f"{manifest['real_return_mean']:.1f}",
        manifest["real_steps"]["random play, trained on"],
    )
    for text in (README, TITLE):
        assert f"{mean} of 500" in text and f"{random:,} real steps" in text
    z, z_h, base = (
        manifest["probe"]["z"]["random"]["r2"],
        manifest["probe"]["(z, h)"]["random"]["r2"],
        manifest["baseline_returns"],
    )
    seen, read = (manifest["open_loop_error"][f"M, {how}"]["30"] for how in ("seen", "from z"))
    rows = [
        f"| mean of 100 real test episodes | {mean} |",
        f"| worst test episode | {min(manifest['real_returns']):.0f} |",
        f"| real steps of looks, only logged | {manifest['real_steps']['looks, only logged']:,} |",
        f"| probe R² of x and θ from z | {z['x']:.3f}, {z['theta']:.3f} |",
        "| probe R² of x, ẋ, θ, θ̇ from (z, h) | "
        f"{', '.join(f'{value:.3f}' for value in z_h.values())} |",
        f"| open loop, 30 steps alone on good play, seen: θ, x | {seen['theta_degrees']:.2f}°, "
        f"{1000 * seen['x_metres']:.0f} mm |",
        f"| the same from z itself | {read['theta_degrees']:.2f}°, {1000 * read['x_metres']:.0f} "
        "mm |",
        f"| coin, hand-written rule | {base['coin']:.1f}, "
        f"{base['hand-written rule on the true state']:.1f} |",
        f"| trained in an untrained M's dreams | {base['untrained M']:.1f} |",
    ]
    for row in rows:
        assert row in README, row
    for stage, seconds in manifest["stages"].items():
        assert f"| {stage} | {seconds:.0f} |" in README, stage


def test_readme_is_short():
    assert len(re.findall(r"\w+", re.sub(r"```.*?```", "", README, flags=re.S))) <= 900


def test_committed_outputs_stand_in_order_without_errors_and_agree_with_the_manifest(manifest):
    counts = [cell["execution_count"] for cell in CELLS if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert not [
        output
        for cell in CELLS
        for output in cell.get("outputs", [])
        if output["output_type"] == "error"
    ]
    printed = outputs()
    assert f"mean of 100 real test episodes: {manifest['real_return_mean']:.1f}" in printed
    assert f"SHA-256 {manifest['checkpoint_sha256'][:12]}" in printed
    assert "/root" not in printed and "/home" not in printed and "/tmp" not in printed
    assert len(json.dumps([cell.get("outputs", []) for cell in CELLS])) < 1_600_000


def test_the_shipped_checkpoint_plays_as_the_manifest_says(nb, manifest):
    settings = nb.make_settings("quick")
    shipped = nb.load_checkpoint(FOLDER / "checkpoint.pt", settings)
    v, m = (
        nb.frozen(nb.V(settings.v), shipped["v"].result),
        nb.frozen(nb.M(settings.v.latents, settings.m.hidden), shipped["practice"].result),
    )
    world = nb.World(
        v,
        m,
        None,
        nb.Codes(nb.torch.zeros(1, 1, settings.v.latents), *[None] * 4),
        settings.m.context,
    )
    returns = nb.lives(
        nb.Agent(world, nb.controller(shipped["c"].result["weights"])), "test", 123, 2, 2
    )
    # Another processor rounds differently, and a close decision may then go the other way.
    assert np.mean(returns) > 0.9 * np.mean(manifest["real_returns"][:2]), returns


def test_the_repository_is_the_same_everywhere(nb):
    """One line of code holds its name; badges can't read it."""
    text = README + "".join(source_of(cell) for cell in CELLS)
    badges = re.findall(
        r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/blob/main/\w+\.ipynb", text
    )
    assert len(badges) == 2 and {*badges, *re.findall(r'REPOSITORY = "(.*?)"', text)} == {
        nb.REPOSITORY
    }
    instead = README.partition("## Publishing it")[2].partition("\n## ")[0]
    others = re.findall(r"[\w.-]+/world-models-cartpole", text.replace(instead, ""))
    assert set(others) <= {nb.REPOSITORY} and f"s#{nb.REPOSITORY}#OWNER/NAME#" in instead
