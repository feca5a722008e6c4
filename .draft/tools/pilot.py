"""pilot.py SEED FOLDER [OVERRIDES]: data, V, codes and good episodes of one seed in the quick profile, kept in FOLDER for trial.py; one thread."""
import sys, os, time; sys.path.insert(0, os.path.dirname(__file__))
from load import load
nb = load(os.environ["NB"]); torch = nb.torch; torch.set_num_threads(1)
class Fixed:
    def __init__(self, device): pass
    def look(self): pass
    def step(self, work): return work()
nb.Pace = Fixed
seed, folder = int(sys.argv[1]), nb.Path(sys.argv[2]); folder.mkdir(parents=True, exist_ok=True)
s = nb.make_settings("quick", f"seed={seed}," + (sys.argv[3] if len(sys.argv) > 3 else ""))
nb.RUN_FOLDER, nb.PRETRAINED = folder, {}
t = time.time(); c, eps = nb.recorded(nb.RandomPolicy(seed), purpose="random", episodes=s.collect.episodes, seed=seed, workers=3); print("collect", time.time() - t, flush=True)
mem = nb.Memory(eps, 4, nb.DEVICE)
t = time.time(); vs = nb.keep(nb.train_v, mem, after=(c,), name="v", v=s.v, seed=seed); print("v", time.time() - t, flush=True)
v = nb.frozen(nb.V(s.v), vs.result)
t = time.time(); nb.keep(nb.encode_memory, mem, v, after=(c, vs), name="codes", copies=s.m.copies, max_shift=4, seed=seed); print("codes", time.time() - t, flush=True)
nb.recorded(nb.centred_policy, purpose="hand written", episodes=8, seed=seed, workers=2)
nb.recorded(nb.RandomPolicy(seed + 1), purpose="fresh", episodes=300, seed=seed + 1, workers=2)
print("done", flush=True)
