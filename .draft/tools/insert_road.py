"""Insert .draft/src/engineer.py into the main script as part 10, before "What was shown"; the cell that tells the minutes comes after it."""
from pathlib import Path
root = Path(__file__).resolve().parent.parent / "src"
main, road = (root / "world_models_cartpole.py").read_text(), (root / "engineer.py").read_text()
assert "The engineer's road" not in main
minutes = '''# %% tags=["run"]
print(f"{(time.time() - began) / 60:.0f} minutes since the first cell")

'''
assert main.count(minutes) == 1
main = main.replace(minutes, "")
head = "# %% [markdown]\n# ## 10 · What was shown, and where to go\n"
assert main.count(head) == 1
main = main.replace(head, road.rstrip() + "\n\n" + minutes + head.replace("10", "11"))
row = "# | 10 What was shown | and where to go: things to try, troubleshooting, glossary, references |\n"
assert main.count(row) == 1
main = main.replace(row, "# | 10 The engineer's road | can a robot use it: smaller, guarded, over a network? |\n" + row.replace("10", "11"))
(root / "world_models_cartpole.py").write_text(main)
