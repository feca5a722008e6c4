import sys
sys.path.insert(0, ".draft")
from nbedit import Book
b = Book()
CHECKED = """run-title-film run-began run-pole run-coin-episode run-by-hand run-valley run-short-c run-height run-cell-2 run-roads run-int8-world run-steered
run-guard-shift run-load-table run-load-axes run-by-gradient run-student-figure run-norm-axes run-drift-play run-rank-lines run-far-rows run-macro-frames
run-words-lines run-words-wrong run-gguf""".split()
for name in CHECKED:
    b.tag(name, "nbval-check-output")
print(len(CHECKED))
for name in ("run-int8-world", "run-steered"):
    print(b.source(name))
b.save()
