import sys
sys.path.insert(0, ".draft")
from nbedit import Book
b = Book()
b.sub("define-contextlib", '''from IPython.display import HTML
''', '''from IPython.display import HTML, display
from IPython.display import Image as Picture
''')
b.sub("define-lies", "if (steps == 0).all() else", "if self.last is None or len(self.last) != len(stacks) else")
b.sub("define-lies", '''self.kind, self.luck = LIES.index(kind), np.random.default_rng(0)''', '''self.kind, self.luck, self.last = LIES.index(kind), np.random.default_rng(0), None''')
b.save()
