"""Fill README.md from the manifest of the run that ships."""
import json, sys
from pathlib import Path
root = Path(__file__).resolve().parent.parent.parent
m = json.loads((root / "assets/quick_run/manifest.json").read_text())
wall = sys.argv[1]  # minutes of the whole quick run, from nothing
z, zh, base = m["probe_r2"]["z"]["random"], m["probe_r2"]["z_h"]["random"], m["baseline_returns"]
seen, read = (m["open_loop_error"][f"M, {how}"]["30"] for how in ("seen", "from z"))
mean, worst = f"{m['real_return_mean']:.1f}", f"{min(m['real_returns']):.0f}"
stages = "\n".join(f"| {name} | {seconds:.0f} |" for name, seconds in m["stages"].items())
text = f"""# World models: CartPole from pixels, solved inside its own dream

[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/your-name/world-models-cartpole/blob/main/world_models_cartpole.ipynb)

One annotated notebook: an agent sees CartPole-v1 only as 64 × 64 pixels, learns a private simulator of it (V, a variational autoencoder; M, an LSTM), trains its controller (C, CMA-ES) wholly inside 30-step dreams, and then walks into the real environment. Every number it talks about is measured in the notebook itself, the failures included.

![real, redrawn by V, dreamed by M](assets/quick_run/film.png)

*One real episode on a test seed. From above: what the camera sees, what V redraws, what M dreams, when every 30 steps it may read sixteen real frames and then goes on alone.*

## Result

**{mean} of 500** on average over 100 real test episodes, after {m['real_steps']['random play, trained on']:,} real steps of random play. Nothing else was trained on, and nothing real chose the controller: a rule does (the mean of the search's means over its second half).

| what | measured |
|---|---|
| mean of 100 real test episodes | {mean} |
| worst test episode | {worst} |
| real steps of looks, only logged | {m['real_steps']['looks, only logged']:,} |
| probe R² of x and θ from z | {z['x']:.3f}, {z['theta']:.3f} |
| probe R² of x, ẋ, θ, θ̇ from (z, h) | {', '.join(f'{value:.3f}' for value in zh.values())} |
| open loop, 30 steps alone on good play, seen: θ, x | {seen['theta_degrees']:.2f}°, {1000 * seen['x_metres']:.0f} mm |
| the same from z itself | {read['theta_degrees']:.2f}°, {1000 * read['x_metres']:.0f} mm |
| coin, hand-written rule | {base['coin']:.1f}, {base['hand-written rule on the true state']:.1f} |
| trained in an untrained M's dreams | {base['untrained M']:.1f} |

All of it comes from one run of the `quick` profile with seed 123, from nothing, on {m['hardware']}. `assets/quick_run/` has its checkpoint, film, dreams and `manifest.json`. Part 9 of the notebook says what other runs gave.

## Take the pole yourself

![the dream, steered, beside the true physics](assets/dream.gif)

[`assets/dream.html`](assets/dream.html) is one file without network access: open it in any browser, phones included, and steer the cart inside M's dream. Any static host serves it. The notebook's part on it writes your own.

## Two commands

On a fresh machine with Python 3.11 or newer. The first sets up and runs the main job (the full recipe with a CUDA GPU, the quick profile without):

```
python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt && .venv/bin/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.timeout=-1 world_models_cartpole.ipynb
```

The second sets up and passes the tests. They run every cell in its smallest profile, then each cell again, then with other knobs; with Chromium present, also the page and the rendered notebook in it:

```
python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt && .venv/bin/python -m pytest -q
```

In Colab, upload the `.ipynb` alone and run all cells. It installs what is missing, never PyTorch. With `USE_PRETRAINED` ticked it takes V, M and C from the shipped checkpoint instead of training them.

## Change a knob

All settings live in one tree, in part 2 of the notebook, with units and allowed ranges. From outside:

```
WM_PROFILE=quick WM_OVERRIDES="m.hidden=128,c.horizon=15,seed=7" .venv/bin/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.timeout=-1 world_models_cartpole.ipynb
```

What the change touches is trained anew, and so is everything after it; what comes before is loaded.

| profile | what it is |
|---|---|
| `full` | the recipe: 5,000 random episodes, 10,000 steps of V, 36,000 of M, 300 generations |
| `quick` | the same experiment for two CPU cores |
| `smoke` | every cell within minutes, for tests; its numbers mean nothing |
| `auto` (default) | `full` with a CUDA GPU, else `quick` |

## Time

`quick` took {wall} minutes from nothing, every cell and figure included, on two cores that others share. `tests/benchmark.py` measures a busy neighbour. On an H100, `smoke` ran to the end, and a `full` with fewer steps as far as the remedies of part 9; all of `full` would take about 25 minutes there. A T4 was not tried. Seconds per stage of the run that ships:

| stage | seconds |
|---|---|
{stages}

## The roads on from it

Part 10 serves V, M and C over HTTP, in INT8, guarded; 11 trains other pupils in the same dreams (PPO, the dream's gradient); 12 and 13 try a contrastive loss and macro-actions against drift; 15 dreams of what tools will answer. Their tables lie in `assets/experiments/`; `WM_ROADS=all` computes them anew. `python tests/load.py` measures the service under load.

## Many runs

`tests/experiments.py` executes the notebook with other seeds and settings and gathers every run, failed ones included, in `assets/experiments/`.

```
.venv/bin/python tests/experiments.py main_line_quick --jobs 2
```

## Where things are saved

In `runs/<profile>/<stage>-<key>/` (or under `WM_RUN_FOLDER`, or on Google Drive). The key is a fingerprint of the stage's settings, of the code it depends on, and of the stages before it. After a kill or a disconnect, run all cells again: long stages save as they go.

## Licence and citation

"""
old = (root / "README.md").read_text()
tail = old[old.index("## Licence and citation") + len("## Licence and citation"):].lstrip("\n")
(root / "README.md").write_text(text + tail)
