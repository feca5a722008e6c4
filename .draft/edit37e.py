import sys
sys.path.insert(0, ".draft")
from nbedit import Book
b = Book()
b.set("run-int8-world", '''int8_lines = []
if "engineer" in live:
    int8_world = world._replace(v=quantised(world.v), m=quantised(world.m))
    int8_inputs = ({"float32": world, "INT8": int8_world}, ship, good_episodes, wide_probe)
    int8_settings = {"seed": settings.seed, "episodes": settings.evaluate.episodes, "workers": settings.collect.workers}
    int8_lines = keep(try_int8, *int8_inputs, after=(c_stage, good_stage), name="int8", **int8_settings).result["lines"]
table_of("engineer_int8", int8_lines).T''')
b.set("run-steered", '''guard_lines = []
if "engineer" in live:
    steered = Driver(int8_world, ship, quantised(verifier))
    guard_settings = {"seed": settings.seed, "episodes": 2 if tiny else 20, "steps": 80 if tiny else 500}
    guard_lines = keep(try_guard, steered, after=(c_stage, verifier_stage), name="guard", **guard_settings).result["lines"]
guard_table = table_of("engineer_guard", guard_lines)
guard_table''')
b.save()
