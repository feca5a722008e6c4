import sys
sys.path.insert(0, ".draft")
from nbedit import Book
b = Book(); s = b.sub
t = b.source("text-9-when-the-dream-lies")
i = t.index("Everybody who trains")
after = b.source("text-after-its-first-generation-32-updates-c")
drift = after[after.index("### Drift"):]
b.set("text-9-when-the-dream-lies", t[:i] + '''Everybody who trains in a dream meets the same wall: the dream stands, and the real pole falls. C's first look was such a place: after one generation its dreams promised 16.3, and it kept the real pole up for 47 steps. This is why the return that C is trained on does not stop at counting steps, and why the search does not stop at the first dream that looks good. How long can a dream be believed, then, and what warns of a false one?

''' + drift)
b.delete("text-after-its-first-generation-32-updates-c")
b.delete("run-read-pool")
# live_on stands where it is used
cell = b.cell("define-live-on"); b.cells.remove(cell)
b.cells.insert([c["id"] for c in b.cells].index("run-test-age"), cell)
name = next(c["id"] for c in b.cells if c["id"].startswith("text-it-spots-its-own-kind"))
s(name, "not whether the story is true: the dream above had lost its pole while its pictures were clean.", "not whether the story is true.")
n = 0
for c in b.cells:
    if c["cell_type"] == "code":
        n += 1; c["execution_count"] = n
        for o in c["outputs"]:
            if "execution_count" in o: o["execution_count"] = n
b.save()
