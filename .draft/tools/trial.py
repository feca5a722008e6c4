"""trial.py SEED FOLDER [OVERRIDES]: M and C from the saved V and codes of a pilot; open loop, intervals and real returns. One thread. Env NB: the notebook; PATCH: old=>new||old=>new."""
import sys, os, time, glob; sys.path.insert(0, os.path.dirname(__file__))
import load as loader
from load import load
patches = [part.split("=>") for part in os.environ.get("PATCH", "").split("||") if part]
nb = load(os.environ["NB"], patches=patches); torch = nb.torch; torch.set_num_threads(int(os.environ.get("THREADS", 1)))
class Fixed:
    def __init__(self, device): pass
    def look(self): pass
    def step(self, work): return work()
nb.Pace = Fixed
torch.set_float32_matmul_precision(os.environ.get("PRECISION", "high"))
seed, F = int(sys.argv[1]), nb.Path(sys.argv[2])
s = nb.make_settings("quick", f"seed={seed}," + (sys.argv[3] if len(sys.argv) > 3 else ""))
read = lambda name: [e for part in sorted(glob.glob(f"{F}/{name}-*/episodes-*")) for e in nb.read_dataset(nb.Path(part))]
mem, good, fresh = nb.Memory(read("random"), 4, nb.DEVICE), read("hand-written"), read("fresh")
v = nb.frozen(nb.V(s.v), nb.load(nb.Path(glob.glob(f"{F}/v-*/result.pt")[0]))["result"])
codes = nb.Codes(**nb.load(nb.Path(glob.glob(f"{F}/codes-*/result.pt")[0]))["result"])
P = lambda: nb.Progress(nb.Path(nb.tempfile.mkdtemp()))
norms, clip = [], nb.nn.utils.clip_grad_norm_
def watched(parameters, most):
    parameters = list(parameters); x = float(clip(parameters, most)); (len(parameters) == 2 and parameters[0].shape[0] != 1024) or norms.append(x); return x
nb.nn.utils.clip_grad_norm_ = watched
import hashlib
cache = nb.Path(f"{F}/forced-{hashlib.sha256((repr(s.m.but(context=0)) + os.environ.get('MPATCH', '')).encode()).hexdigest()[:8]}.pt")
t = time.time(); forced = torch.load(cache) if cache.exists() else nb.train_m(P(), mem, codes, m=s.m, seed=seed); t1 = time.time() - t
torch.save(forced, cache); n1 = norms[:]; norms.clear()
t = time.time(); prac = nb.train_m(P(), mem, codes, forced["weights"], m=s.m, practice=s.practice, seed=seed) if s.practice.steps else forced
print(os.environ.get("TAG", ""), sys.argv[3:], os.environ.get("PATCH", ""), "m", round(t1), "practice", round(time.time() - t), "clipped", [round(sum(x > 200 for x in n) / max(1, len(n)), 2) for n in (n1, norms)], [[round(x) for x in nb.np.quantile(n or [0], (0.5, 0.9, 0.99))] for n in (n1[:500], n1[-500:], norms[:500], norms[-500:])], flush=True)
world = nb.World(v, nb.frozen(nb.M(64, s.m.hidden), prac), mem, codes, s.m.context)
probe = nb.Probe(codes.mu[-1], nb.true_states(mem, mem.rows, codes.shift[-1][mem.episode], codes.mirror[-1][mem.episode]))
gw, fw = world.looking_at(good), world.looking_at(fresh)
nb.plt.show = lambda: None
nb.show_open_loop({"seen": nb.open_loop_errors(gw, probe), "z": nb.open_loop_errors(gw, probe, seen=False), "fresh random": nb.open_loop_errors(fw, probe)}, "")
for name, w, ks in (("good", gw, (1, 5, 15, 30)), ("fresh", fw, (1, 5, 12, 20))):
    d = nb.drift(w, probe, max(ks)); print(name, [(k, round(float(d["50"][k-1])), round(float(d["90"][k-1])), round(float(d["kl"][k-1]))) for k in ks], flush=True)
if os.environ.get("C"):
    out = nb.learn(None, world, c=s.c, seed=seed, workers=2)
    e = nb.play(nb.Agent(world, out["weights"]), nb.seeds_for("remedies", seed, 6), 2)
    print("C", [len(x.actions) for x in e], "cart", round(max(float(abs(x.states[:, 0]).max()) for x in e), 2), flush=True)
