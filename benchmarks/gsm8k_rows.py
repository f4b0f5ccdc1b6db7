"""GSM8K rows in the form of s1K: the worked solution is the trace, the final number the answer.

    python -m benchmarks.gsm8k_rows --train=gsm8k_train.jsonl --rows=1000 --out=runs/gsm8k_rows.jsonl

Reads GSM8K as released (`question`, `answer` ending in `#### final`): JSONL, or the hub's parquet files or folder.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import re

from s1jax.io import readers


def row(record: readers.Record) -> dict[str, object]:
    """One GSM8K record as an s1K row."""
    solution, final = record["answer"].rsplit("####", 1)
    trace = re.sub(r"<<.*?>>", "", solution).strip()
    return {"question": record["question"], "thinking_trajectories": [trace], "attempt": final.strip()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=pathlib.Path, required=True)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    rows = [row(record) for _, record in itertools.islice(readers.read(args.train), args.rows)]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("".join(json.dumps(one) + "\n" for one in rows))
    print(f"wrote {len(rows)} rows to {args.out}")


if __name__ == "__main__":
    main()
