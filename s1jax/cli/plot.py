"""Draws the curves of several evaluations: `s1jax plot A/results.json B/results.json --out=FILE`.

Every argument is the results.json of an evaluation, or its folder. FILE ends in .png, .svg or .pdf. Each checkpoint has
its own colour, each family of runs its own marker. The legend calls an evaluation by its checkpoint's name, and by its
task too if the tasks differ. With one argument the picture is that of `s1jax evaluate`.

The x axis is logarithmic if the largest average of thinking tokens is at least 30 times the smallest one.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from s1jax.cli import terminal
from s1jax.errors import UserError
from s1jax.evaluation import compare

_OUT = flags.DEFINE_string("out", None, "Picture to write, .png, .svg or .pdf.")
_TITLE = flags.DEFINE_string("title", "", "Above the curves; by default the task.")


def main(files: Sequence[str]) -> None:
    if not _OUT.value:
        raise UserError("--out is missing; name the picture to write, such as curves.png.")
    compare.draw(files, _OUT.value, _TITLE.value)
    print(f"wrote {terminal.safe(_OUT.value)}")
