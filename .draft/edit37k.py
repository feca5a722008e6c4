import sys
sys.path.insert(0, ".draft")
from nbedit import Book
b = Book()
b.sub("run-pool", "number=1, repeat=5)", "number=1, repeat=3)", 2)
b.save()
