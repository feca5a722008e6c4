"""How many robots can the service of the engineer's road hold? Clients, replicas, a replica that is
killed, and requests made to break it.

    python tests/load.py                # writes assets/experiments/engineer_load.csv, in about four
        minutes python tests/load.py --generated 10000    # sends so many generated requests
        instead, and counts the answers by status

It serves V, M and C of the shipped checkpoint in INT8, with a verifier of random weights, which
takes as long as a trained one."""

import argparse
import asyncio
import base64
import collections
import gc
import sys
import threading
import time
from pathlib import Path

import aiohttp
import cloudpickle
import numpy as np
import ray.cloudpickle

sys.path.insert(0, str(Path(__file__).resolve().parent))
from conftest import ROOT, load_notebook

CLIENTS = (1, 8, 32, 128)
SECONDS = 8.0  # for each line
KEY = b"a key for this measurement only!"


async def under_load(
    address: str, clients: int, seconds: float, film: list[str]
) -> dict[str, float]:
    """So many clients, each of which asks again as soon as it is answered: answers per second,
    milliseconds to an answer, and requests that had to be sent again."""
    took, again, end = [], 0, time.perf_counter() + seconds

    async def client(number: int) -> None:
        """One robot with a recorded film. Without an answer it asks the same again, with the same
        token."""
        nonlocal again
        token, step = "", number
        while time.perf_counter() < end:
            begin = time.perf_counter()
            try:
                async with session.post(
                    address + "/act", json={"frames": film[step % len(film)], "token": token}
                ) as answer:
                    token = (await answer.json())["token"]
                took.append(1000 * (time.perf_counter() - begin))
                step += 1
            except aiohttp.ClientError:
                again += 1
                await asyncio.sleep(0.01)

    async with aiohttp.ClientSession(
        raise_for_status=True, connector=aiohttp.TCPConnector(limit=0)
    ) as session:
        await asyncio.gather(*map(client, range(clients)))
    p50, p95, p99 = (
        np.percentile(took, (50, 95, 99)).round(1).tolist() if took else [float("nan")] * 3
    )
    return {
        "per second": round(len(took) / seconds, 1),
        "p50 (ms)": p50,
        "p95 (ms)": p95,
        "p99 (ms)": p99,
        "sent again": again,
    }


def shipped_driver(nb):
    """The driver of the checkpoint, in INT8."""
    settings = nb.make_settings("quick", "")
    stages = nb.load_checkpoint(ROOT / "assets" / "quick_run" / "checkpoint.pt", settings)
    v, m = (
        nb.frozen(nb.V(settings.v), stages["v"].result),
        nb.frozen(nb.M(settings.v.latents, settings.m.hidden), stages["practice"].result),
    )
    world = nb.World(nb.quantised(v), nb.quantised(m), None, None, settings.m.context)
    return nb.Driver(
        world,
        stages["c"].result["weights"],
        nb.quantised(nb.frozen(nb.Verifier(settings.v.latents, settings.m.hidden))),
    )


def lines_of(nb, driver, film: list[str], only: str = ""):
    """One line of the table after the other."""
    for server, replicas in (("uvicorn", 1), ("uvicorn", 2), ("Ray Serve", 1), ("Ray Serve", 2)):
        if only not in ("", server):
            continue
        with (nb.served if server == "uvicorn" else nb.served_by_ray)(driver, KEY, replicas) as (
            address,
            processes,
        ):
            asyncio.run(
                under_load(address, 64, 20.0 if server == "Ray Serve" else 2.0, film)
            )  # to warm up, and to let Ray Serve grow
            print(server, replicas, "processes:", len(processes()), flush=True)
            for clients in CLIENTS:
                yield {
                    "server": server,
                    "replicas": replicas,
                    "clients": clients,
                    "killed": 0,
                } | asyncio.run(under_load(address, clients, SECONDS, film))
            if replicas == 2:
                threading.Timer(SECONDS / 2, processes()[0].kill).start()
                yield {
                    "server": server,
                    "replicas": replicas,
                    "clients": 32,
                    "killed": 1,
                } | asyncio.run(under_load(address, 32, SECONDS, film))


def generated(app, count: int) -> collections.Counter:
    """Send so many requests to each operation, made from the app's own OpenAPI page, valid and not
    (fewer where there are no more); count the answers by status."""
    import schemathesis
    from hypothesis import HealthCheck, given, settings, strategies

    def pictures(seed: int) -> str:
        """Random grey values: nobody finds 16,384 bytes in base64 by chance."""
        return base64.b64encode(np.random.default_rng(seed).bytes(4 * 64 * 64)).decode()

    schemathesis.openapi.format("base64", strategies.integers(0, 2**32 - 1).map(pictures))
    schema, statuses = schemathesis.openapi.from_asgi("/openapi.json", app), collections.Counter()
    operations = [result.ok() for result in schema.get_all_operations()]
    for operation in operations:
        modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)

        @given(
            case=operation.as_strategy(generation_mode=modes[0])
            | operation.as_strategy(generation_mode=modes[1])
        )
        @settings(
            max_examples=count,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        )
        def send(case):
            status = case.call().status_code
            statuses[f"{case.method} {case.path} {status}"] += 1

        send()
    return statuses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--generated", type=int, default=0)
    parser.add_argument("--only", default="", help="uvicorn or Ray Serve: print, and write nothing")
    arguments = parser.parse_args()
    nb = load_notebook("notebook")
    for pickler in (cloudpickle, ray.cloudpickle):
        pickler.register_pickle_by_value(nb)  # the servers' processes can't import it
    driver = shipped_driver(nb)
    gc.freeze()  # the clients shall not wait for Python's collector either
    if arguments.generated:
        for what, number in sorted(
            generated(nb.make_app(driver, KEY), arguments.generated).items()
        ):
            print(f"{number:6d} {what}")
    else:
        frames = nb.play(nb.centred_policy, nb.seeds_for("roads", 0, 1), 1)[0].frames
        film = [
            base64.b64encode(frames[k : k + 4].tobytes()).decode() for k in range(len(frames) - 4)
        ]
        lines = []
        for line in lines_of(nb, driver, film, arguments.only):
            print(line, flush=True)
            lines.append(line)
        if not arguments.only:
            nb.write_table(ROOT / "assets" / "experiments" / "engineer_load.csv", lines)
