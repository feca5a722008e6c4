"""insert_road.py FILE "toc row": put .draft/src/FILE into the main script as the next part, before the cell that tells the minutes; "What was shown" moves on by one."""
import re, sys
from pathlib import Path
root = Path(__file__).resolve().parent.parent / "src"
main, road = (root / "world_models_cartpole.py").read_text(), (root / sys.argv[1]).read_text()
number = int(re.search(r"# ## (\d+) · What was shown", main)[1])
assert f"## {number} · " in road and road.splitlines()[1] not in main
minutes = "# %% tags=[\"run\"]\nprint(f\"{(time.time() - began) / 60:.0f} minutes since the first cell\")\n"
row = f"# | {number} What was shown |"
assert main.count(minutes) == main.count(row) == 1
main = main.replace(f"# ## {number} · What was shown", f"# ## {number + 1} · What was shown").replace(row, f"# | {number} {sys.argv[2]} |\n" + row.replace(str(number), str(number + 1)))
main = main.replace(minutes, road.rstrip() + "\n\n" + minutes)
(root / "world_models_cartpole.py").write_text(main)
