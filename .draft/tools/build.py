"""Percent script -> notebook, with cell ids made of the cells' content (stable as long as a cell keeps its first name)."""
import ast, re, subprocess, sys, unicodedata
from pathlib import Path
import jupytext, nbformat
src, out = Path(sys.argv[1]), Path(sys.argv[2])
subprocess.run([sys.executable, "-m", "ruff", "check", "--select", "I", "--fix", "-q", "--config", str(Path(__file__).parent.parent.parent / ".ruff.toml"), str(src)])
subprocess.run([sys.executable, "-m", "ruff", "format", "-q", "--config", str(Path(__file__).parent.parent.parent / ".ruff.toml"), str(src)])
notebook = jupytext.read(src)
seen = {}
def slug(text): return re.sub(r"[^a-z0-9]+", "-", unicodedata.normalize("NFKD", text.lower()).encode("ascii", "ignore").decode()).strip("-")[:40].strip("-")
for cell in notebook.cells:
    if cell.cell_type == "code":
        tags = cell.metadata.get("tags", [])
        nodes = ast.parse(cell.source).body
        names = [n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef))] if "define" in tags else []
        names = names or [x.id for n in nodes for x in ast.walk(n) if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)] or [a.asname or a.name for n in nodes if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names] or ["cell"]
        title = re.match(r"# @title (.*)", cell.source)
        base = ("define-" if "define" in tags else "run-") + slug(names[0])
    else:
        base = "text-" + (slug(re.sub(r"[#*$`]", "", cell.source.strip().splitlines()[0])) or "cell")
    seen[base] = seen.get(base, 0) + 1
    cell["id"] = base if seen[base] == 1 else f"{base}-{seen[base]}"
    cell.metadata = {k: v for k, v in cell.metadata.items() if k in ("tags", "cellView", "alt")}
notebook.metadata = {"accelerator": "GPU", "colab": {"provenance": [], "toc_visible": True}, "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
 "language_info": {"codemirror_mode": {"name": "ipython", "version": 3}, "file_extension": ".py", "mimetype": "text/x-python", "name": "python", "nbconvert_exporter": "python", "pygments_lexer": "ipython3", "version": "3.11.7"}}
notebook.nbformat_minor = 5
nbformat.validate(notebook)
text = nbformat.writes(notebook)
out.write_text(text + "\n")
subprocess.run([sys.executable, "-m", "ruff", "format", "-q", "--config", str(Path(__file__).parent.parent.parent / ".ruff.toml"), str(out)])
