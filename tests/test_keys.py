"""What a stage's key follows, and what not: asked in kernels, where the code is nobody's module."""

import json
import time

import pytest
from conftest import source_of, tagged
from test_rerun import Kernel

STAGES = (
    "record, baseline, train_v, encode_memory, train_m, train_c, looks, train_verifier, "
    "train_speaker, try_student, try_horizon, try_remedy, try_int8, try_guard, try_words"
)
ASK = f"""
asked = {{stage.__name__: stage_key(stage) for stage in ({STAGES})}}
torch.manual_seed(0)
asked["a world"] = stage_key(baseline, World(None, M(2, 2), None, None, 1))
print(json.dumps(asked))
"""


def begun(place, seed: str) -> Kernel:
    """A kernel that knows all definitions, with another order of sets than others."""
    kernel = Kernel(place, PYTHONHASHSEED=seed)
    for cell in tagged("define"):
        kernel.run(cell["id"])
    kernel.run("run-profile")
    return kernel


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """One for all tests of this file; each cleans up after itself."""
    kernel = begun(tmp_path_factory.mktemp("keys"), "1")
    yield kernel
    kernel.end()


def test_all_keys_are_the_same_in_every_kernel_and_quickly_made(kernel, tmp_path):
    begin = time.perf_counter()
    keys = kernel.ask(ASK)
    assert time.perf_counter() - begin < 15 and len(set(json.loads(keys).values())) == 16
    other = begun(tmp_path, "2")
    try:
        # What was used already (copied, sent to another process) is no other for that.
        other.ask("copy.copy(Agent(World(None, M(2, 2), None, None, 1), None))")
        other.ask("play(random_policy, seeds_for('random', 0, 2), 2, steps=3)")
        assert other.ask(ASK) == keys
    finally:
        other.end()


BASE = '''CUT, KINDS, STEPS = slice(0, 5), {"a", "b"}, range(4)
GRID, LIMIT = np.array([1.0, 2.0]), [1, 2]
def scaled(x, by):
    return x * by
half = functools.partial(scaled, by=0.5)
def made(share):
    return lambda x: x * share
third = made(0.3)
class Pair(NamedTuple):
    """Two."""
    a: int
    def more(self):
        return self.a + 1  # one
def near(x):
    return x + 4
class Net:
    how = near
    def size(self):
        return Net, 3
def deepest():
    return 10
def middle(x):
    return [deepest() + y for y in range(x)]
def twice(function):
    @functools.wraps(function)
    def inner(*values):
        return 2 * function(*values)
    return inner
@twice
def decorated(x):
    return x
def work(progress, *, way=near, of=lambda x: x + 5):
    numbers = [LIMIT[CUT], "c" in KINDS, STEPS, GRID, half(1), third(1), way(1), of(1)]
    return numbers, Pair(1).more(), Net().size(), Net.how(1), middle(2), decorated(3)
'''
SAME = {
    "a comment": ("# one", "# two"),
    "blank lines": ("def middle", "\n\ndef middle"),
    "a blank line inside": ("    numbers =", "\n    numbers ="),
    "formatting": (
        "[deepest() + y for y in range(x)]",
        "[\n        deepest() + y for y in range(x)\n    ]",
    ),
    "a function with an attribute's name": ("def middle", "def size():\n    return 0\ndef middle"),
    "what nobody uses": ("def middle", "def unused():\n    return 0\ndef middle"),
}
OTHER = {
    "a slice": ("slice(0, 5)", "slice(0, 6)"),
    "a set": ('{"a", "b"}', '{"a", "c"}'),
    "a range": ("range(4)", "range(5)"),
    "an array": ("[1.0, 2.0]", "[1.0, 3.0]"),
    "a list": ("[1, 2]", "[1, 3]"),
    "a partial": ("by=0.5", "by=0.6"),
    "a closure's value": ("made(0.3)", "made(0.4)"),
    "a closure": ("x * share", "x - share"),
    "a method of a named tuple": ("self.a + 1", "self.a + 2"),
    "a class attribute that is a function": ("how = near", "how = scaled"),
    "a default": ("x + 4", "x + 9"),
    "a nameless default": ("x + 5", "x + 9"),
    "a method": ("Net, 3", "Net, 4"),
    "a helper of a helper": ("return 10", "return 11"),
    "a comprehension": ("deepest() + y", "deepest() - y"),
    "a decorator": ("2 * function", "3 * function"),
    "a docstring": ('"""Two."""', '"""Both."""'),
    "itself": ("Net().size()", "Net().size(), 1"),
}


@pytest.mark.parametrize("what", [*SAME, *OTHER])
def test_a_key_follows_all_code_and_nothing_else(kernel, what):
    old, new = (SAME | OTHER)[what]
    assert BASE.count(old) == 1
    key = kernel.ask(BASE + "print(stage_key(work))")
    assert len(key) == 13
    other = kernel.ask(BASE.replace(old, new) + "print(stage_key(work))")
    assert (key == other) == (what in SAME)


# What is changed in the notebook; which stages are other ones then; and which are not.
ALL = {*STAGES.split(", ")}
EDITS = {
    "how M's change is scaled": (
        ("CHANGE = 5.0", "CHANGE = 4.0"),
        {"train_m", "a world"},
        {"train_v", "record"},
    ),
    "the KL": (
        ("0.5 * (mu.square() + log_var", "0.6 * (mu.square() + log_var"),
        {"train_v"},
        {"train_m", "train_c", "record"},
    ),
    "what a dream pays": (
        ("return says.reward\n", "return 2 * says.reward\n"),
        {"train_c", "try_remedy"},
        {"train_v", "train_m"},
    ),
    "how h is read": (
        ("state = m.begin(z[:, 0])", "state = m.begin(z[:, 1])"),
        {"looks", "a world"},
        {"train_v", "record"},
    ),
    "the card": (("rendered by the environment itself", "rendered by itself"), set(), ALL),
    "what is said of saving": (("could not be saved", "was not saved"), set(), ALL),
    "what is said of a stage": (("s of work, kept in", "seconds, kept in"), set(), ALL),
    "the size of a part": (("PART = 1000", "PART = 900"), set(), ALL),
}


@pytest.mark.parametrize("what", EDITS)
def test_an_edit_in_the_notebook_changes_its_own_stages(kernel, what):
    (old, new), changed, unchanged = EDITS[what]
    (source,) = [source_of(cell) for cell in tagged("define") if old in source_of(cell)]
    before = json.loads(kernel.ask(ASK))
    try:
        kernel.ask(source.replace(old, new))
        after = json.loads(kernel.ask(ASK))
    finally:
        kernel.ask(source)
    other = {name for name in before if before[name] != after[name]}
    assert changed <= other and not unchanged & other, other
    assert json.loads(kernel.ask(ASK)) == before


def test_settings_and_inputs_count_by_content(nb, world, episodes, smoke):
    def key(*inputs, **settings):
        return nb.stage_key(nb.train_c, *inputs, **settings)

    def seen(count):
        return nb.Memory(episodes[:count], 4, nb.DEVICE)

    assert key(seen(5)) == key(seen(5)) and key(world, seed=1) == key(world, seed=1)
    agents = [nb.Agent(world, nb.reward, exploration) for exploration in (0.1, 0.2)]
    twice = seen(5)
    twice.pool = twice.rows.repeat(2)
    fewer = world.codes._replace(mu=world.codes.mu[:1])
    keys = [
        key(world),
        key(world, seed=1),
        key(world, seed=2),
        key(world, c=smoke.c),
        key(world, c=smoke.c.but(horizon=7)),
        key(world._replace(context=world.context + 1)),
        key(world._replace(codes=fewer)),
        *(key(seen(count)) for count in (4, 5)),
        key(twice),
        *map(key, agents),
        *(key(nb.controller(weights)) for weights in (nb.torch.ones(5), nb.torch.zeros(5))),
        *map(key, (nb.random_policy, nb.centred_policy)),
        key(nb.hand_written_policy),
    ]
    assert len(set(keys)) == len(keys)
    assert key(world, workers=2) == key(world, workers=3), "they change nothing that comes out"


def test_a_tensor_is_read_again_after_a_change(nb):
    numbers = nb.torch.zeros(3)
    before = nb.stage_key(nb.train_c, numbers)
    assert nb.stage_key(nb.train_c, nb.torch.zeros(3)) == before
    numbers[1] = 1.0
    assert nb.stage_key(nb.train_c, numbers) != before
    shapes = nb.torch.zeros(4), nb.torch.zeros(2, 2), nb.torch.zeros(4, dtype=nb.torch.int32)
    assert len({nb.stage_key(nb.train_c, values) for values in shapes}) == 3


@pytest.mark.parametrize("name", ["input 0", "how", "the name endless"])
def test_what_cannot_be_part_of_a_key_is_named(kernel, name):
    asked = {
        "input 0": "train_c, endless",
        "how": "train_c, how=endless",
        "the name endless": "reads",
    }[name]
    said = kernel.ask(f"""
endless = (k for k in range(3))
def reads(progress):
    return next(endless)
try:
    stage_key({asked})
except TypeError as error:
    print(error)
""")
    assert f"{name} of " in said and "can't be part of a key" in said
