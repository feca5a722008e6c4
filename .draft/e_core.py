import sys
sys.path.insert(0, ".draft")
from nbedit import Book
from tok import tokens
b = Book()
CORE = """define-contextlib define-shrink define-episode define-play define-randompolicy define-memory define-down define-v
define-kl-to-normal define-choose-precision define-shift-law-broken define-random-views define-codes define-state define-step
define-m-losses define-train-m define-world define-features define-variance-mask define-make-cma define-axes
define-search-space define-reward define-agent define-learn""".split()
for name in CORE: b.tag(name, "core")
b.save()
print(len(CORE), sum(tokens(b.source(n)) for n in CORE))
