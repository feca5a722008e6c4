import json, linecache, sys, types, os
from pathlib import Path
os.environ.setdefault("TQDM_DISABLE", "1")
def load(path, name="notebook"):
    module = types.ModuleType(name); sys.modules[name] = module
    for number, cell in enumerate(json.loads(Path(path).read_text())["cells"]):
        if cell["cell_type"] == "code" and "define" in cell["metadata"].get("tags", []):
            source = "".join(cell["source"]); filename = f"<{name} cell {number}>"
            linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
            exec(compile(source, filename, "exec"), module.__dict__)
    module.DEVICE = module.torch.device("cpu")
    return module
