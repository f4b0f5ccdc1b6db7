"""Samples a checkpoint under a thinking budget.

    python -m launch.sample --checkpoint=CKPT --prompts=FILE.jsonl --out=FILE.jsonl --max_thinking_tokens=N
        [--min_thinking_tokens=N] [--num_waits=N] [--wait=Wait] [--max_answer_tokens=N] [--temperature=T] [--top_p=P]
        [--top_k=K] [--min_p=P] [--seed=N] [--batch_size=B] [--cache_length=S] [--dtype=float32]
        [--cache_dtype=int8] [--weight_dtype=int8|int4|fp8|mxfp4] [--mesh=data=2,tensor=4]
        [--system=TEXT] [--stop=TEXT ...] [--n=N] [--repetition_penalty=P]
    python -m launch.sample --checkpoint=CKPT --prompt="..."          one question, streamed to the terminal

A row of the prompts file is {"question": "..."} or {"prompt_ids": [...]}, and may have settings of its own, such as
"max_thinking_tokens", "wait", "system", "stop", "n" or "seed". The output has one line per prompt, in order. With
"n" above 1 a prompt has n lines, one after the other; "sample_index" counts them from 0. The file appears when it is
complete. Until then finished rows are in FILE.jsonl.partial, and the same command continues after them.

With --prompts the same command may run in several processes, on hosts that see the same files: process I of N samples
rows I, I + N, ... on the devices of its host, with the tokens that one process gives. s1jax/cli/processes.py says how
processes find each other; otherwise give --coordinator=HOST:PORT, --num_processes=N and --process_id=I. Finished rows
of process I are in FILE.jsonl.partial-I, and process 0 writes FILE.jsonl. Any number of processes continues after the
rows that any other number has finished. Exit code 75: another process was lost, at most a minute ago.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags
from rich.console import Console

from s1jax.cli import engine_flags, processes, progress, terminal
from s1jax.config.sampling import SamplingParams
from s1jax.errors import UserError
from s1jax.io import files, paths

if TYPE_CHECKING:
    from s1jax.engine.engine import Engine
    from s1jax.io.journals import Journals, Share

FLAGS = flags.FLAGS

flags.DEFINE_string("checkpoint", "", "s1jax checkpoint, training workdir or package:NAME.")
flags.DEFINE_string("prompts", "", "File or folder of prompt rows (JSONL, JSON, CSV, parquet, Arrow).")
flags.DEFINE_string("out", "", "JSONL file to write.")
flags.DEFINE_string("prompt", None, "One question, answered on the terminal; instead of --prompts and --out.")
flags.DEFINE_string("system", "", "System prompt; empty: that of the chat format.")
flags.DEFINE_integer("batch_size", 16, "Batch slots: sequences that are decoded at one time.", lower_bound=1)
flags.DEFINE_integer("cache_length", 0, "Longest sequence in tokens; 0: what the longest row can need.", lower_bound=0)
_HELP = {
    "max_thinking_tokens": "Thinking is cut here; 0: no thinking.",
    "min_thinking_tokens": "An earlier end of thinking is replaced by the wait string.",
    "num_waits": "Ends of thinking beyond the minimum that are replaced by the wait string.",
    "max_answer_tokens": "Sampled tokens of the answer, its stop token included.",
    "max_completion_tokens": "All tokens after the prompt: thinking, delimiters and answer; 0: no such limit.",
    "temperature": "0 is greedy.",
    "top_p": "Smallest set of tokens with at least this probability.",
    "top_k": "The k most probable tokens; 0: all.",
    "min_p": "Tokens at least this fraction as probable as the best; 0: all.",
    "repetition_penalty": "Above 1: tokens that the prompt or the sequence has already become less probable.",
    "stop": "Text that ends the answer, which is cut before it; give the flag again for more than one.",
    "wait": "String that replaces an end of thinking; empty: the end tokens are masked instead.",
    "reasoning_effort": "A word that the chat format writes into the prompt (gpt-oss: low, medium, high).",
    "n": "Samples of each prompt; above 1 with a temperature above 0.",
    "seed": "Seed of the noise, which differs from row to row; a row's own seed gives the same tokens in any file.",
}
for _name, _default in dataclasses.asdict(SamplingParams()).items():
    if isinstance(_default, tuple):
        flags.DEFINE_multi_string(_name, None, _HELP[_name])
    elif isinstance(_default, str):
        flags.DEFINE_string(_name, _default, _HELP[_name])
    elif isinstance(_default, float):
        flags.DEFINE_float(_name, _default, _HELP[_name])
    else:
        flags.DEFINE_integer(_name, _default, _HELP[_name])


def main() -> int:
    one = FLAGS.prompt is not None
    if not FLAGS.checkpoint:
        raise UserError("--checkpoint is missing; give a checkpoint, a training workdir or package:NAME.")
    if one == bool(FLAGS.prompts):
        raise UserError("give exactly one of --prompts=FILE.jsonl and --prompt='...'.")
    if one == bool(FLAGS.out):
        raise UserError("--out=FILE.jsonl goes with --prompts; --prompt writes to the terminal.")
    for flag in ("checkpoint", "prompts", "out"):
        paths.local(str(FLAGS[flag].value), f"--{flag}")
    given = {field.name: getattr(FLAGS, field.name) for field in dataclasses.fields(SamplingParams)}
    controls = SamplingParams(**given | {"stop": given["stop"] or ()})
    if one and controls.n > 1:
        raise UserError("--n goes with --prompts and --out; --prompt shows one answer.")
    engine_flags.parse_mesh(engine_flags.MESH.value)
    if one:
        processes.refuse("--prompt")
        _answer(controls)
        return 0
    return processes.run(lambda: _answer_file(controls))


def _answer_file(controls: SamplingParams) -> int:
    from s1jax.checkpoint import store
    from s1jax.engine import rows as rows_lib
    from s1jax.parallel import shares
    from s1jax.parallel.processes import together

    notes: list[str] = []
    out = together(_out)
    rows, names = together(lambda: rows_lib.read(FLAGS.prompts, notes))
    share = shares.share()
    for note in notes if share.is_first else ():
        terminal.note(note)
    store.using(FLAGS.checkpoint, lambda folder: _sample_file(folder, rows, names, out, controls, share))
    return 0


def _out() -> pathlib.Path:
    """Returns the file of --out, which can be written."""
    out = pathlib.Path(os.path.realpath(FLAGS.out))  # of a link the file that it leads to
    if pathlib.Path(FLAGS.out).absolute().parts[1:2] in (("dev",), ("proc",)):
        raise UserError(f"--out={FLAGS.out} cannot be written: it is not a regular file; give the path of a file.")
    if not out.parent.is_dir():
        raise UserError(f"--out={out} cannot be written: {out.parent} is not a folder; give the path of a file.")
    if out.exists() and not out.is_file():
        what = "a folder" if out.is_dir() else "not a regular file"
        raise UserError(f"--out={out} cannot be written: it is {what}; give the path of a file.")
    return out


def _sample_file(
    folder: pathlib.Path,
    rows: list[dict[str, Any]],
    names: list[str],
    out: pathlib.Path,
    controls: SamplingParams,
    share: Share,
) -> None:
    """Samples this process's share of the rows with the checkpoint in `folder`; the first one writes all to `out`."""
    from s1jax.engine import fields
    from s1jax.io import journal as journal_lib
    from s1jax.parallel import shares

    if share.is_first:
        _say_notes(folder, rows, names, controls)
    counts = [fields.row_controls(row, controls, name).n for row, name in zip(rows, names, strict=True)]
    run = _fingerprint(folder, rows, controls)
    # Under a fingerprint of its own: an output in the place of the journal is foreign to it, and the other way round.
    with shares.open_journals(out.with_name(out.name + ".partial"), f"{run}-partial", share) as journals:
        if out.exists() and out.stat().st_size:  # an empty one, as mktemp makes it, holds nothing to be lost
            done = len(journal_lib.read(out, run)[0])
            if done != sum(counts):
                raise UserError(f"{out} holds {done} of {sum(counts)} rows; remove it, and the command samples again.")
            if share.is_first:
                journals.remove()  # of a process that was killed when the output was complete
                print(f"{out} has all {done} rows already")
            return
        _sample_missing(folder, rows, names, controls, counts, journals, share)
        if not share.is_first:
            journals.wait()
            return
        outputs = _outputs(journals.rows)
        with files.replace(out) as file:
            for place in sorted(outputs):
                row = json.dumps({"fingerprint": run, **outputs[place]}, ensure_ascii=False)
                file.write(row.encode() + b"\n")
        journals.remove()


def _outputs(rows: Sequence[dict[str, Any]]) -> dict[tuple[int, int], dict[str, Any]]:
    """Returns the outputs in the rows of a journal by row and sample."""
    return {(row["index"], row["output"].get("sample_index", 0)): row["output"] for row in rows}


def _say_notes(folder: pathlib.Path, rows: list[dict[str, Any]], names: list[str], controls: SamplingParams) -> None:
    """Says what is unusual about checkpoint and rows."""
    from s1jax.checkpoint import store
    from s1jax.engine import fields
    from s1jax.text import written

    engine_flags.say_step(FLAGS.checkpoint, folder)
    about = store.load_metadata(folder)
    asked = (
        "\n".join(
            (
                str(row.get("question") or ""),
                str(row.get("system") or FLAGS.system),
                str(row.get("wait", controls.wait)),
            )
        )
        for row in rows
    )
    for note in written.notes(about.tokenizer, about.chat, zip(names, asked, strict=True), "sent"):
        terminal.note(note)
    handed = fields.unused(rows)
    if handed:
        terminal.note(f"{FLAGS.prompts}: not used, handed through to the output: {', '.join(handed)}.")


def _fingerprint(folder: pathlib.Path, rows: list[dict[str, Any]], controls: SamplingParams) -> str:
    from s1jax.checkpoint import digests
    from s1jax.io import journal as journal_lib

    settings = dataclasses.asdict(controls)
    wait = settings.pop("wait")  # kept by itself, as in the fingerprints of earlier outputs
    if not settings["reasoning_effort"]:  # which earlier versions did not have
        del settings["reasoning_effort"]
    return journal_lib.fingerprint(
        {
            "checkpoint": digests.fingerprint(folder),
            "rows": rows,
            "controls": settings,
            "wait": wait,
            "system": FLAGS.system,
            "seeds": "one a row",  # earlier runs had one for all, whose rows these would not continue
            "dtype": engine_flags.dtype(),
            "cache_dtype": FLAGS.cache_dtype,
            "weight_dtype": FLAGS.weight_dtype,
        }
    )


def _sample_missing(
    folder: pathlib.Path,
    rows: list[dict[str, Any]],
    names: list[str],
    controls: SamplingParams,
    counts: list[int],
    journals: Journals,
    share: Share,
) -> None:
    """Samples the rows of this process that the journals lack. The first process then waits for those of the others.

    A row that lacks one sample of several gets all of them again, which are equal.

    Args:
      folder: of the checkpoint.
      rows: all prompts.
      names: in messages.
      controls: of what a row does not say itself.
      counts: samples of each row.
      journals: of outputs.
      share: of this process.
    """
    from s1jax.engine import rows as rows_lib

    outputs = _outputs(journals.rows)
    earlier = frozenset(outputs)
    mine = [i for i in range(len(rows)) if i in share]
    missing = [i for i in mine if any((i, j) not in outputs for j in range(counts[i]))]
    before = sum((i, j) in outputs for i in mine for j in range(counts[i]))
    again = sum((i, j) in outputs for i in missing for j in range(counts[i]))
    what = f"sampling (process 0 of {share.num_processes})" if share.num_processes > 1 else "sampling"
    begun = time.monotonic()
    with progress.Bar(what, sum(counts[i] for i in mine), shown=share.is_first) as bar:
        bar.update(before)

        def report(done: int, num_ids: int, thinking: int) -> None:
            rate = f"{num_ids / (time.monotonic() - begun):.0f} tok/s{engine_flags.thinking_share(thinking, num_ids)}"
            bar.update(before + max(done - again, 0), rate)

        if missing:
            engine = engine_flags.engine(os.fspath(folder), FLAGS.batch_size, FLAGS.cache_length)
            begun = time.monotonic()
            stream = rows_lib.stream(
                engine, [rows[index] for index in missing], controls, names=[names[i] for i in missing],
                system=FLAGS.system, indices=missing, progress=report,
            )  # fmt: skip
            for place, output in stream:
                key = (missing[place], output.get("sample_index", 0))
                if key not in outputs:
                    outputs[key] = output
                    journals.append({"index": missing[place], "output": output})
        if not share.is_first:
            return
        if share.num_processes > 1:
            bar.phase("waiting for the rows of other processes")
        journals.gather(lambda rows: len(_outputs(rows)) < sum(counts))
    seconds = max(time.monotonic() - begun, 1e-9)
    outputs = _outputs(journals.rows)
    new = [len(output["ids"]) for place, output in outputs.items() if place not in earlier]
    thinking = sum(output["thinking_tokens"] for output in outputs.values())
    cut = sum(output["thinking_end"] == "cut" for output in outputs.values())
    print(
        f"{len(outputs)} rows to {FLAGS.out}: {thinking / len(outputs):.1f} thinking tokens a row, {cut} cut,"
        f" {sum(new)} ids of {len(new)} rows in {seconds:.1f} s ({sum(new) / seconds:.0f} tok/s,"
        " compilation included)"
    )


def _answer(controls: SamplingParams) -> None:
    """Streams one answer: thinking dimmed, forced waits marked, then the answer."""
    from s1jax.checkpoint import store
    from s1jax.engine.request import Request

    def load(folder: pathlib.Path) -> Engine:
        engine_flags.say_step(FLAGS.checkpoint, folder)
        return engine_flags.engine(os.fspath(folder), 1, FLAGS.cache_length)

    engine = store.using(FLAGS.checkpoint, load)
    console = Console(highlight=False, soft_wrap=True)
    begun, part, output = time.monotonic(), "", None
    for piece in engine.stream_tokens(Request(FLAGS.prompt, name="--prompt"), controls, system=FLAGS.system):
        output = piece.output
        style = "dim" if piece.part == "thinking" else "bold"
        if piece.part != part:
            if part:
                console.print()
            console.rule(piece.part, align="left", style=style)
            part = piece.part
        if piece.text:
            marked = f"{style} underline" if piece.forced else style
            console.print(terminal.safe(piece.text), style=marked, end="", markup=False, emoji=False)
    console.print()
    assert output is not None  # the last piece has it
    print(
        f"{output.thinking_tokens} thinking tokens ({output.thinking_end}, {output.waits}"
        f" wait{'' if output.waits == 1 else 's'}),"
        f" {output.answer_tokens} of answer ({output.answer_end}), {time.monotonic() - begun:.1f} s",
        file=sys.stderr,
    )
