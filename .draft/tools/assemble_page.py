"""Put .draft/src/page.html into .draft/src/page.py's template, or, with "again", into the main script's cell."""
import re, sys
from pathlib import Path
src = Path(__file__).resolve().parent.parent / "src"
html = (src / "page.html").read_text().rstrip()
assert '"""' not in html and "\\" not in html
if sys.argv[1:] == ["again"]:
    main = src / "world_models_cartpole.py"; text = main.read_text()
    begin = text.index('PAGE = r"""') + len('PAGE = r"""'); end = text.index('"""', begin)
    main.write_text(text[:begin] + html + "\n" + text[end:])
else:
    print((src / "page.py").read_text().replace("__PAGE__", html + "\n"), end="")
