"""The code cells at 100 columns: usage columns.py NOTEBOOK"""
import ast
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

sys.path.insert(0, ".draft")
import nbedit
from wrap import wrap

path = Path(sys.argv[1])
RUFF = [".venv/bin/ruff", "format", "-q", "--config", "line-length=100", str(path)]
nbedit.PATH = path
b = nbedit.Book()


def reflow(name, first, last):
    """Items of a table, as many in a line as fit."""
    lines = b.source(name).split("\n")
    a = next(k for k, line in enumerate(lines) if line.startswith(first))
    z = next(k for k in range(a, len(lines)) if lines[k].startswith(last))
    indent = re.match(r"\s*", lines[a])[0]
    items = re.findall(r'(?:[^,"\[\](]|"[^"]*"|\[[^\]]*\]|\((?:[^()]|\([^()]*\))*\))+,', " ".join(line.strip() for line in lines[a : z + 1]))
    items = [item.strip() for item in items]
    rows, row = [], indent
    for item in items:
        if len(row) + len(item) + 1 > 100:
            rows.append(row.rstrip())
            row = indent
        row += item + " "
    lines[a : z + 1] = [*rows, row.rstrip()]
    b.set(name, "\n".join(lines))


reflow("define-plot", '    "figure.facecolor"', '    "axes.prop_cycle"')
reflow("define-profile-name", '        "collect.episodes": 2_000', '        "practice.learning_rate"')
reflow("define-profile-name", '        "collect.episodes": 40', '        "round.episodes": 2')
SKIPS = ("define-plot", "define-profile-name")
for cell in b.cells:
    if cell["cell_type"] == "code" and cell["id"] not in SKIPS:
        text = "".join(cell["source"])
        cell["source"] = re.sub(r"  # fmt: skip", "", text).splitlines(True)

# comments at the end of lines that are too wide, and what else only a hand can do
S = b.sub
S("run-began", '''needed = """torch>=2.6 torchvision>=0.21 gymnasium>=1.1 pygame>=2.6 datasets>=4.0 nevergrad>=1.0.12 numpy>=2.0 scipy>=1.15
pandas>=2.2 pillow>=10.0 pydantic>=2.7 matplotlib>=3.9 ipywidgets>=7.7 safetensors>=0.4 tqdm>=4.66""".split()''', '''needed = """torch>=2.6 torchvision>=0.21 gymnasium>=1.1 pygame>=2.6 datasets>=4.0 nevergrad>=1.0.12
numpy>=2.0 scipy>=1.15 pandas>=2.2 pillow>=10.0 pydantic>=2.7 matplotlib>=3.9 ipywidgets>=7.7
safetensors>=0.4 tqdm>=4.66""".split()''')
S("define-episode", "    finally:  # after an error or an interrupt one would wait for ever for answers that were already taken\n", "    finally:\n        # After an error or an interrupt one would wait for ever for answers that were already taken.\n")
S("define-randompolicy", "    number = PURPOSES.index(purpose)  # purposes lie 100 million apart, and each takes a random stretch of consecutive seeds in its own range\n    first = number * 100_000_000 + int(np.random.default_rng([seed, number]).integers(90_000_000))\n", "    # Purposes lie 100 million apart, and each takes a random stretch of its own range.\n    number = PURPOSES.index(purpose)\n    luck = np.random.default_rng([seed, number])\n    first = number * 100_000_000 + int(luck.integers(90_000_000))\n")
S("define-plot", "PIXEL_SHAPE = 1.5  # a pixel of ours shows a piece of the world that is 1.5 times as wide as it is high: the camera's picture is 600 x 400\n", "# A pixel of ours shows a piece of the world that is 1.5 times as wide as it is high: the camera's\n# picture is 600 x 400.\nPIXEL_SHAPE = 1.5\n")
for old, new in {
    "channels of the four convolutions, from the image inwards, such as 8-16-32-64: 1 to 1024 each": "channels of the four convolutions, such as 8-16-32-64: 1 to 1024 each",
    "largest sideways shift of an observation or an episode, in pixels (1 pixel = 0.075 m)": "largest sideways shift of an observation or an episode, in pixels",
    "weight of the shift law, in nats per e-fold of the share of z's change that breaks it; 0: no law": "weight of the shift law, on log s; 0: no law",
    "encoded copies of the data, all but the first with shifts and mirrors of their own": "encoded copies of the data, all but one shifted and mirrored",
    "real steps that M reads before it speaks: at a dream's beginning and in the real world": "real steps that M reads before it speaks, in dreams and awake",
    "worth, in steps, of surviving a dream in a familiar state; 0: only steps count": "worth (steps) of ending a dream in a familiar state; 0: none",
    "weight of the last state's squared distance from the data; 0: all are equally familiar": "weight of the last state's squared distance from the data",
    "directions of (z, h) in which C is searched: those whose future is easiest to tell": "directions in which C is searched: those easiest to foretell",
    "searches for C per remedy, in part 9; 0: its table comes from assets/experiments": "searches for C per remedy, in part 9; 0: taken from a table",
    "stretches of recorded play on which a dream's drift is measured, at most": "stretches of play on which a dream's drift is measured, at most",
}.items():
    S("define-branch", old, new)
S("define-profile-name", '''        return f"unknown setting {name!r}: the choices are {', '.join('.'.join([*branch, field]) for field in fields)}"
''', '''        choices = ", ".join(".".join([*branch, field]) for field in fields)
        return f"unknown setting {name!r}: the choices are {choices}"
''')
S("define-profile-name", '''    ends = [str(end) for limit in fields[leaf].metadata for end in (getattr(limit, "ge", None), getattr(limit, "le", None)) if end is not None]
    problem = error["msg"].removeprefix("Value error, ")
    return f"{name} = {error['input']!r} is not allowed: {problem} ({fields[leaf].description}{'; allowed is ' * bool(ends)}{' to '.join(ends)})"''', '''    limits = fields[leaf].metadata
    ends = [str(getattr(limit, end)) for limit in limits for end in ("ge", "le") if hasattr(limit, end)]
    about = fields[leaf].description + ("; allowed is " + " to ".join(ends) if ends else "")
    problem = error["msg"].removeprefix("Value error, ")
    return f"{name} = {error['input']!r} is not allowed: {problem} ({about})"''')
S("define-plain-source", '''        parts = map(spelt, value)
        return f"{type(value).__name__} {sorted(parts) if isinstance(value, (set, frozenset)) else list(parts)}"
''', '''        parts = [spelt(part) for part in value]
        parts = sorted(parts) if isinstance(value, (set, frozenset)) else parts
        return f"{type(value).__name__} {parts}"
''')
S("define-load-checkpoint", '''LOOK_AROUND = "collect.episodes=300,evaluate.good_episodes=4,evaluate.episodes=10"  # with V, M and C at hand, fewer real episodes do
''', '''# With V, M and C at hand, fewer real episodes do.
LOOK_AROUND = "collect.episodes=300,evaluate.good_episodes=4,evaluate.episodes=10"
''')
text = b.source("define-checksum")
a, z = text.index('CARD = """'), text.index("def checksum")
b.set("define-checksum", text[:a] + '''CARD = """---
{{license: mit, pretty_name: "CartPole-v1 from pixels, {policy}"}}
---
{episodes} episodes ({steps} steps) of gymnasium's CartPole-v1, rendered by the environment itself.
One row is one episode of T steps.

- `seed`: the environment's reset seed
- `frames`: (T + 1, 64, 64) uint8, blue channel, area-averaged from 600 x 400
- `states`: (T + 1, 4) float32, x (m), x_dot (m/s), theta (rad), theta_dot (rad/s); for measurements
  only, nothing is trained on it
- `actions`: (T,) 0 left, 1 right; `rewards`: (T,) always 1
- `terminated`: the pole fell or the cart left the picture; `truncated`: 500 steps were over
"""


''' + text[z:])
S("define-pace", "SLOW = 2.0  # three steps in a row that take so many times as long as in the trial: the machine has changed\n", "# Three steps in a row that take so many times as long as in the trial: the machine has changed.\nSLOW = 2.0\n")
S("define-choose-precision", "FIRST_SCALE = 2.0**4  # of a float16 loss: V's gradients fit below 2⁴ to 2⁸, and the scaler's own 2¹⁶ would cost the first dozen steps\n", "# Of a float16 loss. V's gradients fit below 2⁴ to 2⁸; the scaler's own 2¹⁶ would cost a dozen steps.\nFIRST_SCALE = 2.0**4\n")
S("define-state", "    DOUBT = 10.0  # Adam moves a weight by its learning rate at most: with this factor the doubt reaches its size in time\n", "    # Adam moves a weight by its learning rate at most: so the doubt reaches its size in time.\n    DOUBT = 10.0\n")
S("define-past", "    alone: Tensor  # (B, 2Z + 2H + 1) M's state after the last push, where it dreams on if the next pictures are not believed\n", "    # (B, 2Z + 2H + 1) M's state after the last push: from there it dreams on if it must.\n    alone: Tensor\n")
S("define-make-app", "    gc.freeze()  # else Python's collector looks through all that was imported once a second, and all robots wait\n", "    gc.freeze()  # else Python's collector looks through all that was imported, and robots wait\n")
S("define-forget-namespaces", "        work.write_bytes(cloudpickle.dumps(serve))  # a new process knows nothing of this notebook: the function travels with all that it needs\n", "        # A new process knows nothing of this notebook: the function travels with all that it needs.\n        work.write_bytes(cloudpickle.dumps(serve))\n")
S("define-every-second-row", '''    return [(number, np.arange(begins[number] + (ends[number] - begins[number] - cut) % 2, ends[number] - cut + 1, 2))
            for ten in tens for cut in (0, 1) for number in ten]''', '''    halves = []
    for ten in tens:
        for cut, number in itertools.product((0, 1), ten):
            first, last = begins[number], ends[number] - cut
            halves.append((number, np.arange(first + (last - first) % 2, last + 1, 2)))
    return halves''')
b.set("define-every-second-row", "import itertools\n\n\n" + b.source("define-every-second-row"))
S("define-office", '''         "converter": {"convert": (DIGITS, tuple(UNITS))}}  # tool -> what it can be asked, and what each argument may be
''', '''         "converter": {"convert": (DIGITS, tuple(UNITS))}}
''')
S("define-office", "TOOLS = {", "# Tool -> what it can be asked, and what each argument may be.\nTOOLS = {")
text = b.source("define-open-gguf")
a, z = text.index('RULES = """'), text.index("def open_gguf")
rules = text[a:z].strip().removeprefix('RULES = """').removesuffix('"""').split("\n")
b.set("define-open-gguf", text[:a] + 'RULES = """' + "\n".join(textwrap.fill(line, 84, break_on_hyphens=False, subsequent_indent="  ") for line in rules) + '"""\n\n\n' + text[z:])
S("run-framed", '''    display(HTML(f'<iframe title="the dream to play with" srcdoc="{framed}" width="100%" height="820" style="border:0"></iframe>'))''', '''    size = 'width="100%" height="820" style="border:0"'
    display(HTML(f'<iframe title="the dream to play with" srcdoc="{framed}" {size}></iframe>'))''')
S("run-roads", '"WM_ROADS", "auto")  # @param ["auto", "none", "engineer", "student", "researcher", "frontier", "words", "all"] {allow-input: true}', '"WM_ROADS", "auto")  # @param ["auto", "none", "all"] {allow-input: true}')
S("run-profile", 'PROFILE = os.environ.get("WM_PROFILE", "auto")  # @param ["auto", "smoke", "quick", "full"] {allow-input: true}', 'PROFILE = os.environ.get("WM_PROFILE", "auto")  # @param ["auto", "smoke", "quick", "full"]')
S("define-make-app", 'f"a body of at most {LARGEST:,} bytes, and its length in the header, please"', 'f"at most {LARGEST:,} bytes, and their number in the header, please"')
S("define-plot", '    "axes.prop_cycle": plt.cycler(color=[BLUE, ORANGE, GREEN, RED, PURPLE, GREY], ls=["-", "--", "-.", ":", "-", "--"]),', '    "axes.prop_cycle": plt.cycler(\n        color=[BLUE, ORANGE, GREEN, RED, PURPLE, GREY], ls=["-", "--", "-.", ":", "-", "--"]\n    ),')
b.save()
subprocess.run(RUFF, check=True)
b = nbedit.Book()
for cell in b.cells:
    if cell["cell_type"] == "code" and cell["id"] != "define-page":
        new = wrap("".join(cell["source"]))
        ast.parse(new)
        cell["source"] = new.splitlines(True)
b.save()
subprocess.run(RUFF, check=True)
b = nbedit.Book()
count = 0
for cell in b.cells:
    if cell["cell_type"] == "code":
        for k, line in enumerate("".join(cell["source"]).splitlines()):
            if len(line) > 100:
                count += 1
                if cell["id"] != "define-page":
                    print(cell["id"], k, len(line), line.strip()[:170])
print(count)
