"""Run the notebook again and again, with other settings and seeds, and gather what it measured into
CSV files.

    python tests/experiments.py main_line_quick      # ten seeds of the profile that two cores get
    python tests/experiments.py main_line            # ten seeds of the full profile
    python tests/experiments.py remedies --jobs 2    # two runs side by side
    python tests/experiments.py --table              # only gather what is there

The notebook itself is the program: each run executes it from the first cell to the last with
`WM_PROFILE` and `WM_OVERRIDES`. Runs share their saved stages, so that a remedy which touches only
C trains only C. Runs that are finished are left alone: stop it when you like, and start it again.
Every run leaves a line in `assets/experiments/<experiment>.csv`, those that failed as well."""

import argparse
import ast
import csv
import hashlib
import io
import json
import os
import shutil
import sys
import threading
import time
import tokenize
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nbformat
from conftest import own_sockets
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "world_models_cartpole.ipynb"
TABLES = ROOT / "assets" / "experiments"
RUNS = Path(os.environ.get("WM_RUN_FOLDER", ROOT / "runs")) / "experiments"
# Part 9 is left out of every run (its cells are tagged `extra`), and most episodes of the coin and
# the rule: they only measure.
MAIN = "evaluate.baseline_episodes=4"


class Experiment(NamedTuple):
    """One table: rows (name -> overrides), run with each seed."""

    profile: str
    seeds: list[int]
    common: str
    rows: dict[str, str]


EXPERIMENTS = {
    # The main line as it ships: `auto` is quick on two cores, and full where there is CUDA.
    "main_line_quick": Experiment("quick", list(range(1, 11)), MAIN, {"as shipped": ""}),
    "main_line": Experiment("full", list(range(1, 11)), MAIN, {"as shipped": ""}),
    # What earns its place: runs share their saved stages, so a row that touches only C trains only
    # C.
    "without": Experiment(
        "quick",
        [5, 6, 7],
        MAIN,
        {
            "as shipped": "",
            "the lawful axes alone": "c.growing=0",
            "no worth for the last state": "c.last_worth=0",
            "noise, τ = 1": "c.temperature=1",
            "dreams of 15 steps": "c.horizon=15",
            "dreams of 60 steps": "c.horizon=60",
            "no practice for M": "practice.steps=0",
            "no shift law for V": "v.law=0",
        },
    ),
    "data_diet": Experiment(
        "quick",
        [5, 6, 7],
        MAIN,
        {
            f"{episodes} random episodes": f"collect.episodes={episodes}"
            for episodes in (100, 300, 1000, 2000, 5000)
        },
    ),
    # Seconds, not hours: it shows that the runner works.
    "smoke": Experiment("smoke", [1, 2], "", {"as shipped": "", "horizon 15": "c.horizon=15"}),
}
LOCK = threading.Lock()  # one table is written at a time
COLUMNS = """
experiment row overrides profile seed status real_mean real_worst spearman probe_r2_theta
open_loop_theta_30 open_loop_x_30 open_loop_theta_30_from_z random_steps look_steps seconds
stage_seconds code returns error
""".split()


def lines_of(name: str) -> dict[tuple[str, int], dict]:
    """The lines of an experiment's CSV file by row and seed; none if there is no file."""
    path = TABLES / f"{name}.csv"
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {(line["row"], int(line["seed"])): line for line in csv.DictReader(file)}


def code_hash(cells: list[nbformat.NotebookNode]) -> str:
    """Twelve digits of a hash of the code in some cells, the same under every version of Python.
    Comments, docstrings and blank lines don't count."""
    return hashlib.sha256(
        "\n".join(bare_code(cell.source) for cell in cells if cell.cell_type == "code").encode()
    ).hexdigest()[:12]


def bare_code(source: str) -> str:
    """Code without its comments, docstrings and blank lines. The text is cut, not parsed and
    written anew: that differs between versions of Python."""
    lines = [
        line.encode() for line in source.splitlines()
    ]  # ast counts columns in bytes, tokenize in characters
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = token.line[:column].encode()
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, (ast.FunctionDef, ast.ClassDef))
            and ast.get_docstring(node) is not None
        ):
            first, last = node.body[0].lineno, node.body[0].end_lineno
            lines[first - 1 : last] = [b""] * (last - first + 1)
    return "\n".join(line.decode().rstrip() for line in lines if line.strip())


def run(name: str, row: str, seed: int) -> None:
    """Execute the notebook once, unless that run is finished; leave `line.json` in the run's own
    folder, whatever happens.

    Finished is also what stands so in the CSV file, made by the same code: another machine may have
    run it."""
    experiment = EXPERIMENTS[name]
    folder = RUNS / name / f"{row.replace(' ', '-').replace(',', '')}-{seed}"
    if (folder / "line.json").exists() and json.loads(
        (folder / "line.json").read_text(encoding="utf-8")
    )["status"] == "finished":
        return
    overrides = ",".join(filter(None, [experiment.common, experiment.rows[row], f"seed={seed}"]))
    notebook = nbformat.read(NOTEBOOK, 4)
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    notebook.cells = [cell for cell, its in zip(notebook.cells, tags) if "extra" not in its]
    code = code_hash(notebook.cells)
    known = lines_of(name).get((row, seed), {})
    if (
        known.get("status") == "finished"
        and known["code"] == code
        and known["overrides"] == overrides
    ):
        return
    shutil.rmtree(folder, ignore_errors=True)  # what a failed run has left
    folder.mkdir(parents=True, exist_ok=True)
    line = {
        "experiment": name,
        "row": row,
        "overrides": overrides,
        "profile": experiment.profile,
        "seed": seed,
        "code": code,
    }
    environment = {
        "WM_PROFILE": experiment.profile,
        "WM_OVERRIDES": overrides,
        "WM_RUN_FOLDER": str(RUNS / "stages"),
        "WM_OUT_FOLDER": str(folder),
        "WM_NO_WIDGETS": "1",
        "TQDM_DISABLE": "1",
        "MPLBACKEND": "agg",
    }
    print(f"{time.strftime('%H:%M')} {name}: {row}, seed {seed}", flush=True)
    begin = time.time()
    try:
        client = NotebookClient(
            notebook,
            timeout=14_400,
            resources={"metadata": {"path": str(ROOT)}},
            config=own_sockets(),
        )
        client.execute(env=os.environ | environment)
        line |= {"status": "finished"} | summary(
            json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        )
    except Exception as error:
        last_line = ([""] + str(error).strip().splitlines())[-1]  # some errors say nothing
        line |= {"status": "failed", "error": f"{type(error).__name__}: {last_line[:200]}"}
    line["seconds"] = round(time.time() - begin)
    (folder / "line.json").write_text(json.dumps(line, indent=1, allow_nan=False), encoding="utf-8")
    print(
        f"{time.strftime('%H:%M')} {name}: {row}, seed {seed}: {line['status']}, "
        f"{line.get('real_mean', line.get('error'))}",
        flush=True,
    )


def summary(manifest: dict) -> dict:
    """What a table needs of one run's manifest."""
    returns, (seen, read) = (
        manifest["real_returns"],
        (manifest["open_loop_error"][f"M, {how}"]["30"] for how in ("seen", "from z")),
    )

    def rounded(value: float | None, digits: int) -> float | str:
        """Empty where it could not be measured."""
        return "" if value is None else round(value, digits)

    return {
        "real_mean": round(manifest["real_return_mean"], 2),
        "real_worst": min(returns),
        "spearman": manifest["dream_real"]["spearman"],
        "probe_r2_theta": rounded(manifest["probe"]["z"]["random"]["r2"]["theta"], 4),
        "open_loop_theta_30": rounded(seen["theta_degrees"], 3),
        "open_loop_x_30": rounded(seen["x_metres"], 4),
        "open_loop_theta_30_from_z": rounded(read["theta_degrees"], 3),
        "random_steps": manifest["real_steps"]["random play, trained on"],
        "look_steps": manifest["real_steps"]["looks, only logged"],
        "stage_seconds": round(
            sum(manifest["stages"].values())
        ),  # of work, whenever it was done: `seconds` is less where stages were loaded
        "returns": " ".join(f"{value:.0f}" for value in returns),
    }


def gather(name: str) -> Path | None:
    """Write the lines of all runs of an experiment, failed ones included, to its CSV file; lines of
    earlier runs that are no longer here stay in it."""
    path = TABLES / f"{name}.csv"
    lines = lines_of(name)
    for file in sorted((RUNS / name).glob("*/line.json")):
        line = json.loads(file.read_text(encoding="utf-8"))
        lines[line["row"], line["seed"]] = line
    if not lines:
        return None
    TABLES.mkdir(parents=True, exist_ok=True)
    order = {row: number for number, row in enumerate(EXPERIMENTS[name].rows)}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            lines[key]
            for key in sorted(lines, key=lambda key: (order.get(key[0], len(order)), key[1]))
        )
    return path


def side_by_side(
    chains: list[tuple[str, int, list[str]]], jobs: int, work: Callable[[str, int, list[str]], None]
) -> None:
    """Call `work(*chain)` for every (experiment, seed, rows), `jobs` at a time and in this order,
    but never for one seed twice at a time.

    Runs of one seed share stages, which must not be made twice."""
    waiting, busy, turn = list(chains), set(), threading.Condition()

    def worker() -> None:
        """Take one chain after another until none is left."""
        while True:
            with turn:
                turn.wait_for(
                    lambda: not waiting or any(seed not in busy for _, seed, _ in waiting)
                )
                if not waiting:
                    return
                chain = next(chain for chain in waiting if chain[1] not in busy)
                waiting.remove(chain)
                busy.add(chain[1])
            try:
                work(*chain)
            finally:
                with turn:
                    busy.discard(chain[1])
                    turn.notify_all()

    workers = [threading.Thread(target=worker, daemon=True) for _ in range(jobs)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()


def main(arguments: list[str]) -> None:
    """Run the experiments that are asked for, and gather what is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "experiments", nargs="*", choices=[[], *EXPERIMENTS], help="default: none, only gather"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="only these seeds")
    parser.add_argument("--rows", nargs="+", help="only these rows")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs side by side; each gets its share of the cores"
    )
    parser.add_argument("--table", action="store_true", help="only gather")
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // options.jobs))
    if options.jobs > 1:
        os.environ["OMP_WAIT_POLICY"] = (
            "passive"  # or idle threads of one run take the cores from the other
        )
    chains = [
        (
            name,
            seed,
            [row for row in EXPERIMENTS[name].rows if options.rows is None or row in options.rows],
        )
        for name in ([] if options.table else options.experiments)
        for seed in EXPERIMENTS[name].seeds
        if options.seeds is None or seed in options.seeds
    ]

    def runs_of(name: str, seed: int, rows: list[str]) -> None:
        """All rows of one seed, one after another."""
        for row in rows:
            run(name, row, seed)
            with LOCK:
                gather(name)

    side_by_side(chains, options.jobs, runs_of)
    for name in options.experiments or EXPERIMENTS:
        path = gather(name)
        if path:
            print(
                f"{name}: {path.name} has {sum(1 for _ in path.open(encoding='utf-8')) - 1} lines"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
