import sys
sys.path.insert(0, ".draft")
from nbedit import Book
b = Book(); s = b.sub
for c in b.cells:
    if c["id"].startswith("text-the-small-picture"):
        name = c["id"]
s(name, '<details><summary><b>Another world.</b> What is CartPole', '<details><summary><b>Bring your own world</b></summary>\n\nWhat is CartPole')
s(name, 'change that cell.</summary>\n', 'change that cell.\n')
b.save()
