import json, linecache, sys, types, os
from pathlib import Path
os.environ.setdefault("TQDM_DISABLE", "1")
def load(path, name="notebook", patches=()):
    module = types.ModuleType(name); sys.modules[name] = module; used = set()
    for number, cell in enumerate(json.loads(Path(path).read_text())["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and "define" in cell["metadata"].get("tags", []):
            for old, new in patches:
                if old in source: used.add(old)
                source = source.replace(old, new)
            filename = f"<{name} cell {number}>"
            linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
            exec(compile(source, filename, "exec"), module.__dict__)
    assert len(used) == len(patches), patches
    module.DEVICE = module.torch.device("cpu")
    return module
