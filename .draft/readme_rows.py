"""Rewrites the measured rows of README.md from the manifest."""
import json, re
from pathlib import Path
m = json.loads(Path("assets/quick_run/manifest.json").read_text()); p = Path("README.md"); t = p.read_text()
z, zh, base = m["probe"]["z"]["random"]["r2"], m["probe"]["(z, h)"]["random"]["r2"], m["baseline_returns"]
seen, read = (m["open_loop_error"][f"M, {how}"]["30"] for how in ("seen", "from z"))
mean = f"{m['real_return_mean']:.1f}"
def row(start, value):
    global t
    t, n = re.subn(rf"^\| {re.escape(start)} \|.*$", f"| {start} | {value} |", t, flags=re.M); assert n == 1, start
row("mean of 100 real test episodes", mean); row("worst test episode", f"{min(m['real_returns']):.0f}")
row("real steps of looks, only logged", f"{m['real_steps']['looks, only logged']:,}")
row("probe R² of x and θ from z", f"{z['x']:.3f}, {z['theta']:.3f}")
row("probe R² of x, ẋ, θ, θ̇ from (z, h)", ", ".join(f"{v:.3f}" for v in zh.values()))
row("open loop, 30 steps alone on good play, seen: θ, x", f"{seen['theta_degrees']:.2f}°, {1000 * seen['x_metres']:.0f} mm")
row("the same from z itself", f"{read['theta_degrees']:.2f}°, {1000 * read['x_metres']:.0f} mm")
row("coin, hand-written rule", f"{base['coin']:.1f}, {base['hand-written rule on the true state']:.1f}")
row("trained in an untrained M's dreams", f"{base['untrained M']:.1f}")
t = re.sub(r"\*\*[\d.]+ of 500\*\* on average over 100 real test episodes, after [\d,]+ real steps", f"**{mean} of 500** on average over 100 real test episodes, after {m['real_steps']['random play, trained on']:,} real steps", t)
i = t.index("| stage | seconds |"); j = t.index("\n\n", i)
t = t[:i] + "| stage | seconds |\n|---|---|\n" + "\n".join(f"| {n} | {s:.0f} |" for n, s in m["stages"].items()) + t[j:]
p.write_text(t)
