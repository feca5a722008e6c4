import sys
sys.path.insert(0, ".draft")
from nbedit import Book
b = Book()
text = b.source("run-roads")
a = text.index("road_needs")
b.set("run-roads", text[:a] + '''if "engineer" in live:
    road_needs = "fastapi uvicorn httpx prometheus-client itsdangerous cloudpickle".split()
    road_missing = [
        name for name in road_needs if importlib.util.find_spec(name.replace("-", "_")) is None
    ]
    road_pip = [sys.executable, "-m", "pip", "install", "--quiet", *road_missing]
    if road_missing and subprocess.run(road_pip).returncode:
        raise RuntimeError(
            f"pip could not install {', '.join(road_missing)}: do it in a terminal, or leave the "
            "engineer's road out, then run this cell again."
        )''')
b.save()
