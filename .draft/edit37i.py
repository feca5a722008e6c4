import sys
sys.path.insert(0, ".draft")
from nbedit import Book
b = Book()
b.sub("define-profile-name", '"evaluate.baseline_episodes": 4, "evaluate.good_episodes": 2', '"evaluate.baseline_episodes": 1, "evaluate.good_episodes": 2')
b.save()
