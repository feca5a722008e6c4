"""The cells tagged `core` are what one would copy into another project: data, memory, V, M, dreams,
C, awake. On their own, with the story's own run cells, they train and play."""

import __future__

import sys
import types

import cloudpickle
import pytest
from conftest import CELLS, source_of, tagged

STORY = (
    "run-collect-settings",
    "run-memory",
    "run-v-stage",
    "run-code-settings",
    "run-m-stage",
)


class Progress:
    """Keeps nothing."""

    def load(self):
        return None

    def save(self, state):
        pass


class Pace:
    """One thread, always: more are slow where something else runs."""

    def __init__(self, device):
        pass

    def step(self, work):
        with self.threads(1):
            return work()

    def look(self):
        pass


def keep(function, *inputs, name, **settings):
    """Do the work, and keep it nowhere."""
    return types.SimpleNamespace(result=function(Progress(), *inputs, **settings), seconds=0.0)


@pytest.fixture
def core(nb, smoke):
    """A module of the core's cells alone, and of what a project has of its own: settings, a way to
    keep things, a way to draw."""
    module = types.ModuleType("core")
    sys.modules["core"] = module
    cloudpickle.register_pickle_by_value(module)
    module.switch = nb.switch
    flags = __future__.annotations.compiler_flag
    for cell in tagged("core"):
        exec(compile(source_of(cell), cell["id"], "exec", flags), module.__dict__)
    Pace.threads = staticmethod(module.threads)
    longer = {name: getattr(smoke, name).but(steps=150) for name in ("v", "m")}
    module.settings, module.Pace, module.keep = smoke.but(**longer), Pace, keep
    module.seed_and_workers = {"seed": smoke.seed, "workers": 2}
    module.DEVICE, module.ROOM = module.torch.device("cpu"), module.Room()
    module.plot = module.show_pictures = lambda *panels, **how: None

    def recorded(policy, purpose, *, episodes, seed, workers):
        seeds = module.seeds_for(purpose, seed, episodes)
        return types.SimpleNamespace(result=module.play(policy, seeds, workers))

    module.recorded = recorded
    yield module
    cloudpickle.unregister_pickle_by_value(module)
    del sys.modules["core"]


def test_the_core_alone_trains_and_plays(core, smoke):
    cells = {cell["id"]: source_of(cell) for cell in CELLS}
    for name in STORY:
        exec(cells[name], core.__dict__)
    practised = core.train_m(
        Progress(),
        core.memory,
        core.codes,
        core.m_stage.result["weights"],
        m=smoke.m,
        practice=smoke.practice,
        seed=1,
    )
    m = core.frozen(core.M(smoke.v.latents, smoke.m.hidden), practised)
    core.world = core.World(core.v, m, core.memory, core.codes, smoke.m.context)
    exec(cells["run-c-settings"], core.__dict__)
    agent = core.Agent(core.world, core.controller(core.ship))
    (episode,) = core.play(agent, core.seeds_for("test", 1, 1), 1)
    assert len(episode.actions) > 0 and set(episode.actions) <= {0, 1}
    for stage, number in ((core.v_stage, "error"), (core.m_stage, "reward")):
        log = stage.result["log"][number]
        assert log[-1] < 0.8 * log[0], (number, log)
    assert core.learned["returns"].shape == (smoke.c.generations, smoke.c.population)
