"""Plans the rows of the tables in the headers of configs/ anew, by the command that each header gives.

    python -m benchmarks.plan_headers configs/s1_qwen2p5_7b.py ... [--target=v5p:2x2x4]

A row is a target, the micro-batches, four figures and settings of its own (`mesh.sequence=2`), if it has any; one that
was written by hand without figures gets them. The plans go to benchmarks/results/plans.json, as
`CONFIG TARGET`, where a config has one row of a target. Compiles ahead of time (extras tpu-aot and gpu-aot), minutes a
row.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import shlex
import sys
import tempfile

from benchmarks import plans

_ROW = re.compile(
    r"^    (?P<target>[a-z]\w+:\w+) +(?P<parts>\d+)"
    r"(?P<figures>( +[\d./() ]+)?)(?P<settings>( +[a-z]\S+=\S+)*)$"
)


def arguments_of(header: str, row: re.Match[str]) -> list[str]:
    """Those of the header's command, with the row's target, micro-batches and settings."""
    found = re.search(r"`python -m launch\.plan ([^`]+)`", header)
    if not found:
        sys.exit("error: the header has no `python -m launch.plan ...`; write the command before its table.")
    text = found[1].replace("=TARGET", f"={row['target']}").replace("=N", f"={row['parts']}")
    return shlex.split(text) + [f"--config.{setting}" for setting in row["settings"].split()]


def line(row: re.Match[str], plan: dict) -> str:
    """The row with the figures of a plan."""
    memory = f"{plan['memory']['peak'] / 1e9:6.1f} / {plan['memory']['limit'] / 1e9:.0f}"
    work = f"{plan['model_flops'] / 1e12:.0f} ({plan['executed_flops'] / 1e12:.0f})"
    settings = "  ".join(row["settings"].split())
    figures = f"{memory:<20}{work:<39}{plan['recipe']['minutes']:5.1f}"
    return f"    {row['target']:<11}{row['parts']:<14}{figures}  {settings}".rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", type=pathlib.Path, metavar="CONFIG", help="files of configs/")
    parser.add_argument("--target", default="", help="rows of this target only, or of those whose names start with it")
    parser.add_argument(
        "--outputs", type=pathlib.Path, help="folder of 'CONFIG TARGET.json'; what is there is not compiled again"
    )
    arguments = parser.parse_args()
    folder = arguments.outputs or pathlib.Path(tempfile.mkdtemp())
    for config in arguments.configs:
        header = config.read_text()
        lines = header.splitlines()
        rows = {number: row for number, row in enumerate(map(_ROW.match, lines)) if row}
        targets = [row["target"] for row in rows.values()]
        for number, row in rows.items():
            if not row["target"].startswith(arguments.target):
                continue
            name = f"{config.stem} {row['target']}"
            once = targets.count(row["target"]) == 1
            out = folder / f"{name if once else number}.json"
            found = json.loads(out.read_text()) if out.exists() else plans.run(arguments_of(header, row), out, name)
            lines[number] = line(row, found)
            config.write_text("\n".join(lines) + "\n")  # after each: the next may take minutes, or fail
            if once:
                plans.keep({name: found})


if __name__ == "__main__":
    main()
