import sys
sys.path.insert(0, ".draft")
from nbedit import Book
b = Book()
b.sub("run-macro-drift-lines", "for worth in (settings.c.last_worth, 0.0)", "for worth in sorted({settings.c.last_worth, 0.0}, reverse=True)")
b.sub("run-macro-frames", '''    life_far = life_table[(life_table["worth"] > 0) & (life_table["frames"] == 200)].drop(
        columns=["seed", "worth", "frames"]
    )
''', '''    life_most = life_table["worth"] == life_table["worth"].max()
    life_far = life_table[life_most & (life_table["frames"] == 200)].drop(
        columns=["seed", "worth", "frames"]
    )
''')
b.sub("run-macro-frames", '"Real return with dreams of some length, last state worth 30 and 0"', '"Real return with dreams of some length, with and without a worth of the last state"')
b.save()
