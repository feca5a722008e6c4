"""Settings, episodes, stacks, shifts, datasets."""

import copy

import numpy as np
import pytest

BAD = {
    "m.hidden=0": ["m.hidden", "'0'", "greater than 0"],
    "v.max_shift=32": ["v.max_shift", "less than or equal to 31"],
    "c.temperature=inf": ["c.temperature", "finite"],
    "c.temperature=-1": ["c.temperature", "-1"],
    "m.size=3": ["m.size", "m.hidden"],
    "m=3": ["'m'"],
    "m.=5": ["unknown setting", "m.hidden"],
    "=5": ["unknown setting", "collect"],
    "m.hidden=many": ["m.hidden", "many", "integer"],
    "hello": ["name=value"],
    "collect.episodes=1,000": ["a comma separates", "1000"],
    "m.hidden=0,c.horizon=x": ["m.hidden", "c.horizon"],
}


@pytest.mark.parametrize("text", BAD)
def test_bad_overrides_name_field_value_and_choice(nb, text):
    with pytest.raises(ValueError) as error:
        nb.make_settings("smoke", text)
    for word in BAD[text]:
        assert word in str(error.value)


def test_overrides_reach_their_fields(nb):
    settings = nb.make_settings("full", "m.hidden=128, c.horizon=15,,seed=0,v.width=4,m.hidden=64")
    assert (settings.m.hidden, settings.c.horizon, settings.seed, settings.v.width) == (
        64,
        15,
        0,
        4,
    )
    with pytest.raises(ValueError, match="auto, full, quick, smoke"):
        nb.make_settings("slow")


def test_full_profile_keeps_the_given_numbers(nb):
    full = nb.make_settings("full")
    assert (
        full.seed,
        full.collect.episodes,
        full.v.batch,
        full.v.learning_rate,
        full.v.ramp_steps,
        full.v.steps,
    ) == (123, 5_000, 256, 1e-3, 10_000, 10_000)
    assert (full.v.latents, full.m.hidden, full.m.steps) == (64, 256, 20_000)
    assert (full.c.horizon, full.c.rollouts, full.c.generations, full.evaluate.look_every) == (
        30,
        30,
        300,
        500,
    )


def test_looks_at_reality_stay_within_ten_thousand_steps(nb):
    for profile in ("quick", "full"):
        settings = nb.make_settings(profile)
        c, how = settings.c, settings.evaluate
        looks = 4 + c.generations * c.population // how.look_every
        assert looks * how.look_episodes * nb.LOOK_STEPS <= 10_000


def test_episode_shapes_and_clock(episodes):
    for episode in episodes:
        steps = len(episode.actions)
        assert episode.frames.shape == (steps + 1, 64, 64) and episode.frames.dtype == np.uint8
        assert episode.states.shape == (steps + 1, 4) and episode.rewards.sum() == steps
        assert episode.terminated and not episode.truncated


def test_same_seed_same_episode_whatever_the_number_of_workers(nb, episodes):
    again = nb.play(nb.random_policy, [episode.seed for episode in episodes], 1)
    for a, b in zip(episodes, again):
        assert (
            a.seed == b.seed
            and (a.frames == b.frames).all()
            and (a.actions == b.actions).all()
            and (a.states == b.states).all()
        )


def test_a_frame_is_the_renderers_picture_seen_small(nb):
    env = nb.pixel_cartpole()
    env.reset(seed=3)
    seen, picture = env.step(1)[0]["frame"], env.render()[:, :, 2].astype(float)
    tall, wide = (np.round(np.arange(64) * size / 64).astype(int) for size in picture.shape)
    areas = np.add.reduceat(np.add.reduceat(picture, tall, 0), wide, 1) / np.outer(
        np.diff(tall, append=400), np.diff(wide, append=600)
    )
    assert np.abs(seen - areas).mean() < 2, (
        "each small pixel is the mean of the area that it covers"
    )


def test_truncation_is_not_termination(nb):
    (episode,) = nb.play(nb.centred_policy, [5], 1)
    assert len(episode.actions) == 500 and episode.truncated and not episode.terminated
    assert not nb.Memory([episode], 0, nb.DEVICE).done.any()
    (short,) = nb.play(nb.centred_policy, [5], 1, steps=30)
    assert (
        len(short.actions) == 30 and short.truncated and (short.frames == episode.frames[:31]).all()
    )


def test_terminated_episode_is_done_at_its_last_frame_only(memory, episodes):
    assert memory.done.sum() == len(episodes)
    assert (memory.last[memory.done] == memory.done.nonzero().squeeze(1)).all()


def test_stack_repeats_frame_0_and_never_crosses_an_episode_border(nb, memory, episodes):
    first = int(memory.first[len(episodes[0].frames)])  # row 0 of the second episode
    frames = episodes[1].frames
    for step, wanted in ((0, [0, 0, 0, 0]), (2, [0, 0, 1, 2]), (5, [2, 3, 4, 5])):
        x = memory.stack(nb.torch.tensor([first + step]))[0]
        assert np.allclose(x.numpy(), frames[wanted] / 255, atol=1e-6)


def test_shift_and_mirror_are_index_arithmetic(nb, memory):
    rows = nb.torch.tensor([7, 7, 7])
    x = memory.stack(rows, nb.torch.tensor([0, 3, 0]), nb.torch.tensor([False, False, True]))
    assert (x[1, :, :, :-3] == x[0, :, :, 3:]).all()
    assert (x[2] == x[0].flip(-1)).all()
    both = memory.stack(rows[:1], nb.torch.tensor([3]), nb.torch.tensor([True]))
    assert (both[0] == x[1].flip(-1)).all(), "first shifted, then mirrored"
    band = memory.stack(rows[:1], nb.torch.tensor([3]), band=slice(24, 56))
    assert (band[0] == x[1, :, 24:56]).all()


def test_shifted_state_follows_the_picture(nb, memory):
    rows, none = nb.torch.arange(10), nb.torch.zeros(10, dtype=bool)
    moved = nb.true_states(memory, rows, nb.torch.full((10,), 4), none) - nb.true_states(
        memory, rows, nb.torch.zeros(10, dtype=int), none
    )
    assert (
        nb.torch.allclose(moved[:, 0], nb.torch.full((10,), -4 * nb.PIXEL_METRES), atol=1e-6)
        and (moved[:, 1:] == 0).all()
    )
    assert nb.torch.equal(nb.true_states(memory, rows, 0 * rows, ~none), -memory.states[rows])


def test_moments_come_from_the_rows_that_are_drawn_from(nb, world):
    """All rows are as likely, until a memory names others, or some more often."""

    def shares(memory):
        # Without so many copies it gives no more moments than there are.
        rows, _ = world._replace(memory=memory).moments(20_000, nb.torch.Generator(), copies=200)
        return nb.torch.bincount(memory.episode[rows], minlength=6) / len(rows)

    memory = copy.copy(world.memory)
    back, left = memory.rows - memory.first, memory.last - memory.rows
    fits = (back >= world.context // 2) & (left >= 1)
    wanted = nb.torch.bincount(memory.episode[fits], minlength=6) / fits.sum()
    assert (shares(memory) - wanted).abs().max() < 0.02
    fifth, others = (memory.episode == 4) & fits, (memory.episode != 4) & fits
    memory.pool = nb.torch.cat([memory.rows[others], memory.rows[fifth].repeat(3)])
    more = 3 * int(fifth.sum())
    expected = more / (more + int(others.sum()))
    assert float(shares(memory)[4]) == pytest.approx(expected, abs=0.02)
    memory.pool = memory.rows[:10]
    assert float(shares(memory)[int(memory.episode[0])]) == 1


def test_dataset_round_trip(nb, episodes, tmp_path):
    nb.write_dataset(episodes[:3], 3.5, tmp_path / "set")
    back, seconds = nb.read_dataset(tmp_path / "set")
    assert seconds == 3.5 and len(back) == 3
    for a, b in zip(episodes, back):
        assert (
            a.seed == b.seed
            and (a.frames == b.frames).all()
            and (a.actions == b.actions).all()
            and a.terminated == b.terminated
        )
        assert b.frames.dtype == np.uint8
    assert "3 episodes" in (tmp_path / "set" / "README.md").read_text(encoding="utf-8")


def test_no_two_purposes_share_a_seed(nb):
    seeds = [seed for purpose in nb.PURPOSES for seed in nb.seeds_for(purpose, 123, 5_000)]
    assert len(set(seeds)) == len(seeds)
    with pytest.raises(ValueError):
        nb.seeds_for("exam", 123, 1)


def test_broken_part_of_the_data_is_set_aside_and_recorded_anew(
    nb, run_folder, monkeypatch, capsys
):
    monkeypatch.setattr(nb, "PART", 2)

    def record():
        return nb.recorded(nb.random_policy, "random", episodes=4, seed=1, workers=2)

    before = record()
    bad, good = sorted(run_folder.glob("*/episodes"), key=lambda part: part.stat().st_mtime_ns)
    stamp = (good / "README.md").stat().st_mtime_ns
    for file in bad.glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:100])
    after = record()
    assert "set aside" in capsys.readouterr().out
    assert all((a.frames == b.frames).all() for a, b in zip(before.result, after.result))
    assert (good / "README.md").stat().st_mtime_ns == stamp, "the whole part was left alone"
    assert list(bad.parent.glob("*.unreadable-*"))


def test_a_play_leaves_nothing_behind_in_its_policy(nb):
    class Counter:
        steps = 0

        def __call__(self, now):
            self.steps += 1
            return nb.random_policy(now)

    policy = Counter()
    nb.play(policy, nb.seeds_for("random", 0, 2), 1)
    assert policy.steps == 0


def test_without_pictures_the_same_is_played(nb, episodes):
    seeds = [episode.seed for episode in episodes[:2]]
    blind = nb.play(nb.random_policy, seeds, 1, pictures=False)
    for a, b in zip(episodes, blind):
        assert (a.states == b.states).all() and (a.actions == b.actions).all()
        assert not b.frames.any() and a.frames.any()


@pytest.mark.parametrize("pole", [0.1, 0.5, 0.8, 0.9])
def test_the_band_holds_all_that_moves_whatever_the_pole(nb, pole):
    room = nb.Room(pole=pole)
    (episode,) = nb.play(nb.centred_policy, [3], 1, steps=60, room=room)
    moves = np.ptp(episode.frames.astype(int), axis=0).max(1) > 0  # (64,) by row
    rows = np.flatnonzero(moves)
    band = room.band
    assert (
        band.start <= rows.min() and rows.max() < band.stop and (band.stop - band.start) % 16 == 0
    )
    assert rows.min() - band.start < 16, "no taller than it must be"


def test_gravity_and_force_do_what_they_say(nb):
    def after(**room):
        return nb.play(nb.hand_written_policy, [3], 1, steps=1, room=nb.Room(**room))[0].states

    usual, moon, strong = after(), after(gravity=1.62), after(force=20.0)
    assert (usual[0] == moon[0]).all() and usual[1, 3] != moon[1, 3]
    gained = [states[1, 1] - states[0, 1] for states in (usual, strong)]
    assert gained[1] == pytest.approx(2 * gained[0], rel=0.1)


def test_what_is_cartpoles_own_has_one_home():
    """No limit, width or mirror of it stands in another cell of parts 1 to 8."""
    import re

    from conftest import CELLS, source_of

    sources, part = {}, 0
    for cell in CELLS:
        if cell["cell_type"] == "markdown" and (found := re.match(r"## (\d+)", source_of(cell))):
            part = int(found[1])
        elif cell["cell_type"] == "code" and 1 <= part <= 8:
            sources[cell["id"]] = source_of(cell)
    own = re.compile(
        r"\b2\.4\b|\b4\.8\b|12°|radians\(12\)|\b475\b|\b1 - (a|actions)\b|\b1 - \w+\.actions"
    )
    assert [name for name, source in sources.items() if own.search(source)] == ["define-shrink"]
