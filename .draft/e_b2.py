import sys
sys.path.insert(0, ".draft")
from nbedit import Book
b = Book(); s = b.sub
s("define-ppo-losses", '''    """PPO's losses, step by step, for an "actor" and a "critic": some lives are dreamed, and learned
    from for GATHER steps."""''', '''    """PPO's losses, step by step, for an "actor" and a "critic": some lives are dreamed, and GATHER
    steps learn from them."""''')
for c in b.cells:
    if c["id"].startswith("text-one-rollout-for-all"):
        x = "".join(c["source"]).rstrip() + "\n\nIn the bench, `School` is where all pupils dream, and `advantages` is this equation."
        c["source"] = x.splitlines(True)
b.save()
