"""Settings, episodes, stacks, shifts, datasets."""

import numpy as np
import pytest


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("m.hidden=0", ["m.hidden", "0", "out of range"]),
        ("c.discount=1.5", ["c.discount", "1.5"]),
        ("v.widths=8-16-0-64", ["v.widths"]),
        ("m.size=3", ["m.size", "hidden"]),
        ("m=3", ["'m'"]),
        ("m.hidden=many", ["m.hidden", "many", "int"]),
        ("hello", ["name=value"]),
    ],
)
def test_bad_overrides_name_field_value_and_choice(nb, text, words):
    with pytest.raises(ValueError) as error:
        nb.make_settings("smoke", text)
    for word in words:
        assert word in str(error.value)


def test_overrides_reach_their_fields(nb):
    settings = nb.make_settings("full", "m.hidden=128, c.horizon=15,seed=7,v.mirror=false,v.widths=4-8-8-16")
    assert (settings.m.hidden, settings.c.horizon, settings.seed, settings.v.mirror, settings.v.widths) == (128, 15, 7, False, (4, 8, 8, 16))


def test_unknown_profile(nb):
    with pytest.raises(ValueError, match="auto, full, quick, smoke"):
        nb.make_settings("slow")


def test_full_profile_keeps_the_given_numbers(nb):
    full = nb.make_settings("full")
    assert (full.seed, full.collect.episodes, full.v.batch, full.v.learning_rate, full.v.ramp_steps) == (123, 5_000, 256, 1e-3, 10_000)
    assert full.v.steps >= 10_000
    assert (full.v.latents, full.m.hidden, full.m.steps) == (64, 256, 20_000)
    assert (full.c.horizon, full.c.rollouts, full.c.generations, full.c.check_every) == (30, 30, 300, 500)


def test_every_setting_says_its_meaning(nb):
    for item in nb.dataclasses.fields(nb.Settings):
        default = item.default
        branch = nb.dataclasses.fields(default) if nb.dataclasses.is_dataclass(default) else [item]
        assert all(len(leaf.metadata["meaning"]) > 5 for leaf in branch)


def test_episode_shapes_and_clock(episodes):
    for episode in episodes:
        steps = len(episode.actions)
        assert episode.frames.shape == (steps + 1, 64, 64) and episode.frames.dtype == np.uint8
        assert episode.states.shape == (steps + 1, 4) and episode.rewards.sum() == steps
        assert episode.terminated and not episode.truncated


def test_same_seed_same_episode_whatever_the_number_of_workers(nb, episodes):
    again = nb.play(nb.RandomPolicy(0), [episode.seed for episode in episodes], 1)
    for a, b in zip(episodes, again):
        assert a.seed == b.seed and (a.frames == b.frames).all() and (a.actions == b.actions).all() and (a.states == b.states).all()


def test_truncation_is_not_termination(nb):
    (episode,) = nb.play(nb.centred_policy, [5], 1)
    assert len(episode.actions) == 500 and episode.truncated and not episode.terminated
    assert not nb.Memory([episode], 0, nb.DEVICE).done.any()


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


def test_shifted_state_follows_the_picture(nb, memory):
    rows, shift = nb.torch.arange(10), nb.torch.full((10,), 4)
    dark = [1 - memory.stack(rows, s)[:, -1, 40:].mean(1) for s in (nb.torch.zeros(10, dtype=int), shift)]  # (10, 64) ink per column
    columns = nb.torch.arange(64.0)
    centre = [(ink * columns).sum(1) / ink.sum(1) for ink in dark]
    moved = (nb.true_states(memory, rows, shift) - nb.true_states(memory, rows))[:, 0]
    # The track line crosses the whole picture and pulls the centre of the ink towards the middle, so compare signs and not sizes.
    assert (moved < 0).all() and (centre[1] < centre[0]).all()
    assert nb.torch.allclose(moved, nb.torch.full((10,), -4 * nb.PIXEL_METRES), atol=1e-6)


def test_dataset_round_trip(nb, episodes, tmp_path):
    nb.write_dataset(episodes[:3], tmp_path / "set", "random policy")
    back = nb.read_dataset(tmp_path / "set")
    for a, b in zip(episodes, back):
        assert a.seed == b.seed and (a.frames == b.frames).all() and (a.actions == b.actions).all() and a.terminated == b.terminated
        assert b.frames.dtype == np.uint8
    assert "3 episodes" in (tmp_path / "set" / "README.md").read_text()


def test_no_two_purposes_share_a_seed(nb):
    purposes = ("random", "hand written", "check", "validation", "test", "round 1", "round 2")
    seeds = [seed for purpose in purposes for seed in nb.seeds_for(purpose, 123, 5_000)]
    assert len(set(seeds)) == len(seeds)
    with pytest.raises(ValueError, match="unknown purpose"):
        nb.seeds_for("exam", 123, 1)


def test_broken_part_of_the_data_is_set_aside_and_recorded_anew(nb, run_folder, smoke, capsys):
    small = nb.dataclasses.replace(smoke.collect, episodes=4, save_every=2, workers=2)
    make = nb.functools.partial(nb.run_stage, "collect", nb.collect_random, {"collect": small, "seed": 1})
    stage, before = nb.collected(make)
    good, bad = (stage.folder / name for name in stage.result["parts"])
    stamp = (good / "README.md").stat().st_mtime_ns
    for file in bad.glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:100])
    _, after = nb.collected(make)
    assert "set aside" in capsys.readouterr().out
    assert all((a.frames == b.frames).all() for a, b in zip(before, after))
    assert (good / "README.md").stat().st_mtime_ns == stamp  # the whole part was left alone
    assert list(stage.folder.glob("*.unreadable-*"))
