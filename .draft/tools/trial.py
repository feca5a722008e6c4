"""trial.py SEED M_STEPS PRACTICE_STEPS [OVERRIDES]: M and C from the saved V and codes of a pilot run; open loop, doubt and real returns."""
import sys, os, math, time, glob; sys.path.insert(0, os.path.dirname(__file__))
from load import load
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
nb = load(os.path.join(ROOT, "world_models_cartpole.ipynb")); torch = nb.torch; torch.set_num_threads(1)
seed, ms, ps = map(int, sys.argv[1:4]); over = sys.argv[4] if len(sys.argv) > 4 else ""
s = nb.make_settings("quick", f"seed={seed},m.steps={ms},practice.steps={ps},{over}")
F = nb.Path(os.environ["PILOT"])  # the run folder of a finished quick run with this seed; nb.PRETRAINED = {}
eps = [e for part in sorted(glob.glob(f"{F}/random-*/episodes-*")) for e in nb.read_dataset(nb.Path(part))]
mem = nb.Memory(eps, 4, nb.DEVICE)
v = nb.frozen(nb.V(s.v), [nb.load(nb.Path(p))["result"] for p in glob.glob(f"{F}/v-*/result.pt") if "mean" not in p][0])
codes = nb.Codes(**[nb.load(nb.Path(p))["result"] for p in glob.glob(f"{F}/codes-*/result.pt")][0])
good = [e for part in glob.glob(f"{F}/hand-written-*/episodes-*") for e in nb.read_dataset(nb.Path(part))]
fresh = nb.play(nb.RandomPolicy(seed + 1), nb.seeds_for("fresh", seed + 1, 300), 4)
def P(tag): return nb.Progress(nb.Path(nb.tempfile.mkdtemp()))
t = time.time(); forced = nb.train_m(P("m"), mem, codes, m=s.m, seed=seed); print("m", round(time.time() - t), flush=True)
t = time.time(); prac = nb.train_m(P("p"), mem, codes, forced["weights"], m=s.m, practice=s.practice, seed=seed); print("practice", round(time.time() - t), flush=True)
m = nb.frozen(nb.M(64, s.m.hidden), prac)
world = nb.World(v, m, mem, codes, s.m.context)
shifted = nb.true_states(mem, mem.rows, codes.shift[-1][mem.episode], codes.mirror[-1][mem.episode]); probe = nb.Probe(codes.mu[-1], shifted)
gw, fw = world.looking_at(good), world.looking_at(fresh)
nb.plt.show = lambda: None
nb.show_open_loop({"seen": nb.open_loop_errors(gw, probe), "z": nb.open_loop_errors(gw, probe, seen=False)}, "")
for name, w, ks in (("good", gw, (1, 5, 15, 30)), ("fresh", fw, (1, 5, 12, 20))):
    d = nb.drift(w, probe, max(ks)); print(name, [(k, round(float(d["50"][k-1])), round(float(d["90"][k-1])), round(float(d["kl"][k-1]))) for k in ks], flush=True)
out = nb.learn(None, world, c=s.c, seed=seed, workers=2)
e = nb.play(nb.Agent(world, out["weights"]), nb.seeds_for("remedies", seed, 8), 4)
print("C", [len(x.actions) for x in e], "cart", round(max(float(abs(x.states[:, 0]).max()) for x in e), 2))
