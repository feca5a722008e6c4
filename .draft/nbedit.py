"""Edits of the notebook by cell id: replace text, keep outputs and ids."""

import json
import re
from pathlib import Path

PATH = Path("world_models_cartpole.ipynb")


class Book:
    def __init__(self):
        self.nb = json.loads(PATH.read_text(encoding="utf-8"))
        self.cells = self.nb["cells"]

    def cell(self, name):
        (found,) = [cell for cell in self.cells if cell["id"] == name]
        return found

    def source(self, name):
        return "".join(self.cell(name)["source"])

    def set(self, name, text):
        self.cell(name)["source"] = text.splitlines(True)

    def sub(self, name, old, new, count=1):
        text = self.source(name)
        assert text.count(old) == count, (name, old, text.count(old))
        self.set(name, text.replace(old, new))

    def everywhere(self, old, new):
        hits = 0
        for cell in self.cells:
            text = "".join(cell["source"])
            if old in text:
                hits += text.count(old)
                cell["source"] = text.replace(old, new).splitlines(True)
        assert hits, old
        return hits

    def insert(self, after, name, text, kind="code", tags=(), form=False):
        place = -1 if after is None else [cell["id"] for cell in self.cells].index(after)
        cell = {"cell_type": kind, "id": name, "metadata": {}, "source": text.splitlines(True)}
        if kind == "code":
            cell = {"cell_type": kind, "execution_count": None, "id": name, "metadata": {}, "outputs": [], "source": text.splitlines(True)}
            cell["metadata"] = ({"cellView": "form"} if form else {}) | {"tags": list(tags)}
        self.cells.insert(place + 1, cell)

    def delete(self, name):
        self.cells.remove(self.cell(name))

    def tag(self, name, tag):
        tags = self.cell(name)["metadata"].setdefault("tags", [])
        if tag not in tags:
            tags.append(tag)

    def save(self):
        PATH.write_text(json.dumps(self.nb, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
