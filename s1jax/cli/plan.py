"""Estimates memory, time and price of a run: `python -m launch.plan --config=configs/NAME.py --target=h100:16`.

Compiles the train step of the config for hardware that need not be present: TPU slices (python -m pip install
's1jax[tpu-aot]'), NVIDIA GPUs ('s1jax[gpu-aot]'), or fake CPU devices. --search tries meshes, remat policies,
micro-batches and the chunked MLP. Packed rows need the total length of the data: --num_tokens, which is known for
data.source=s1k. The lengths between the mean and the longest row are made up (s1jax/data/layout.py).

--sample compiles the decode program of the engine instead, whose memory it prints: `python -m launch.plan --sample
--model=gpt_oss_120b --target=h100:1 --weight_dtype=mxfp4 [--cache_dtype=int8] [--batch_size=B] [--cache_length=S]
[--mesh=tensor=8]`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import pathlib
from typing import TYPE_CHECKING, Any, Literal

from absl import flags
from ml_collections import config_flags

from s1jax import perf
from s1jax.cli import command, engine_flags, terminal
from s1jax.config import presets
from s1jax.config.experiment import Experiment, MeshConfig
from s1jax.config.model import ModelConfig
from s1jax.data import layout as layout_lib
from s1jax.errors import UserError
from s1jax.io import files, paths
from s1jax.model import adapters as adapters_lib
from s1jax.plan import targets

if TYPE_CHECKING:  # it imports jax, which must see the flags first
    from s1jax.plan.planner import Plan

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "An experiment of s1jax, by name (countdown_s1), or a file; single settings as --config.a.b=v.",
)
_TARGET = flags.DEFINE_string("target", None, "CHIP:ARRANGEMENT, for example v5p:4x4x4, v6e:4x4, h100:16, cpu:8.")
_MODEL = flags.DEFINE_string(
    "model", "", "Preset of s1jax/config/presets.py, for a config whose checkpoint isn't here."
)
_ROWS = flags.DEFINE_integer("num_rows", 0, "Rows that the recipe trains on; 0: config.data.num_rows, or 1,000.", 0)
_TOKENS = flags.DEFINE_float("num_tokens", 0, "Tokens of all rows together, for packed ones; 0: those of s1K.", 0)
_ROWS_PER_STEP = flags.DEFINE_integer(
    "rows_per_step", 0, "Rows of a packed batch; 0: by config.train.batch_tokens, or by batch_size and --num_tokens.", 0
)
_MFU = flags.DEFINE_float(
    "mfu",
    0.0,
    "Share of peak that the machine is seen to reach, places of padding counted as work, which training's own figure "
    "leaves out; minutes and dollars then follow it, not the roofline. Where the tokens are known, the minutes by that "
    "figure are printed, too.",
)
_OUT = flags.DEFINE_string("out", "", "JSON file to write the plan to.")
_SAMPLE = flags.DEFINE_bool("sample", False, "Plan sampling: the memory of a decode step.")
_SLOTS = flags.DEFINE_integer("batch_size", 16, "Batch slots of --sample.", 1)
_LENGTH = flags.DEFINE_integer("cache_length", 4096, "Tokens of each sequence of --sample, prompt included.", 1)
_SEARCH = flags.DEFINE_bool("search", False, "Try meshes, remat, micro-batches, MLP parts; print what each takes.")

# That --search tries, besides the experiment's own.
_POLICIES: tuple[Literal["save_dots", "save_attention", "full"], ...] = ("save_dots", "save_attention", "full")
_MLP_PARTS = 4
_SHOWN = 5  # of what --search found, in the end
_SMALLEST_SLICE = {"v5p": "v5p-8", "v6e": "v6e-4", "v5e": "v5litepod-4"}  # libtpu wants to hear of one; any does


def main() -> int:
    _check_flags()
    if _SAMPLE.value:
        return _sample()
    if _CONFIG.value is None or _TARGET.value is None:
        raise UserError("give --config=configs/NAME.py and --target=CHIP:ARRANGEMENT, for example --target=h100:16.")
    if not 0 <= _MFU.value <= 1:
        raise UserError(f"--mfu={_MFU.value} is not a share of the peak; give 0 to 1, for example --mfu=0.2.")
    out = paths.local(_OUT.value, "--out")  # looked at now, because compiling takes minutes
    if _OUT.value and out.is_dir():
        raise UserError(f"--out={out} is a folder; name a file.")
    if not out.parent.is_dir():
        raise UserError(f"--out={out}: there is no folder {out.parent}; make it, or choose another.")
    if _OUT.value:
        _check_writable(out)
    settings = _CONFIG.value.to_dict()
    shape = _MODEL.value or _preset_of(str(settings.get("init_from", "")))
    experiment = presets.experiment(settings | ({"init_from": "", "model": shape} if shape else {}))
    target = targets.parse(_TARGET.value)
    layout = layout_lib.layout(experiment, _ROWS.value, _TOKENS.value)
    if _TOKENS.value and layout is None:
        raise UserError("--num_tokens is for packed rows; set --config.data.batching=packed, or leave it out.")
    if layout is None and experiment.train.batch_tokens and not experiment.train.steps:
        raise UserError(
            f"how many steps of config.train.batch_tokens the rows of {experiment.data.source} take is not known; give "
            "--num_tokens, or --config.train.steps."
        )
    _start_compilers(target)
    from s1jax.checkpoint import store
    from s1jax.plan import planner

    model = experiment.model or store.load_metadata(experiment.init_from).config
    teacher = None
    if experiment.distil.teacher and experiment.distil.weight:
        name = _preset_of(experiment.distil.teacher)
        teacher = presets.PRESETS[name] if name else store.load_metadata(experiment.distil.teacher).config
    results = []
    given = _ROWS_PER_STEP.value or (layout.rows if layout else 0)
    rows = given or planner.rows_of(experiment)
    tries = _candidates(experiment, target.devices, rows) if _SEARCH.value else [[experiment]]
    if not tries:
        size = "batch_size" if experiment.train.batch_size else "batch_tokens"
        raise UserError(
            f"the {rows} rows of a step (config.train.{size}) do not divide over the {target.devices} devices of "
            f"{target.name} in any of the meshes that are tried; change one or the other."
        )
    for attempts in tries:
        for candidate in attempts:
            try:
                results.append((planner.plan(candidate, model, target, given, teacher), candidate))
            except UserError as error:
                if not _SEARCH.value:
                    if not isinstance(error, planner.DoesNotFitError):
                        raise
                    command.fail(str(error))
                    return 1
                print(f"{_name(candidate)}: {terminal.safe(str(error))}")
                continue
            if _SEARCH.value:
                print(f"{_name(candidate)}: {_line(results[-1][0])}", flush=True)
            if results[-1][0].fits:
                break
    fitting = [pair for pair in results if pair[0].fits] or results
    if not fitting:
        raise UserError(f"nothing that was tried fits {target.name}; use more devices or shorter rows.")
    fitting.sort(key=lambda pair: (pair[0].seconds["step"], pair[0].memory["peak"]))
    if _SEARCH.value:
        print(f"\nthe fastest of {len(fitting)} that fit:" if fitting[0][0].fits else "\nnone fits; the fastest:")
        for result, candidate in fitting[:_SHOWN]:
            print(f"  {_name(candidate)}: {_line(result)}")
        print()
    best, chosen = fitting[0]
    steps = layout.steps if layout else planner.num_steps(chosen, _ROWS.value or chosen.data.num_rows or 1000)
    record = _record(best, chosen, model, steps, layout, teacher)
    print("\n".join(_table(best, record)))
    if not best.fits:
        print("It does not fit. " + "; ".join(planner.remedies(chosen, best.mesh, best.rows)) + ".")
    if _OUT.value:
        text = json.dumps(record, indent=1) + "\n"
        if out.absolute().parts[1:2] == ("dev",):  # /dev/stdout
            out.write_text(text)
        else:
            files.write_text(os.path.realpath(out), text)
    return 0 if best.fits else 1


def _start_compilers(target: targets.Target) -> None:
    """A topology is not a machine: only the CPU backend starts, and no cloud service is contacted."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", _SMALLEST_SLICE.get(target.kind, ""))
    import jax

    jax.config.update("jax_platforms", "cpu")
    if target.platform == "cpu":
        jax.config.update("jax_num_cpu_devices", target.devices)


def _check_flags() -> None:
    """Raises UserError for a flag that the plan would not look at."""
    sampling = (_SLOTS, _LENGTH, engine_flags.MESH, engine_flags.CACHE_DTYPE, engine_flags.WEIGHT_DTYPE)
    training = (_CONFIG, _ROWS, _TOKENS, _ROWS_PER_STEP, _MFU, _OUT, _SEARCH)
    other = (engine_flags.DTYPE, *(training if _SAMPLE.value else sampling))
    unread = [f"--{flag.name}" for flag in other if flag.present]
    if unread:
        raise UserError(
            f"{', '.join(unread)}: {'not read with' if _SAMPLE.value else 'read only with'} --sample; leave it out."
        )


def _sample() -> int:
    """Plans sampling and prints it."""
    if _MODEL.value not in presets.PRESETS or _TARGET.value is None:
        raise UserError("give --model=PRESET and --target=CHIP:ARRANGEMENT, for example --target=h100:1.")
    if engine_flags.WEIGHT_DTYPE.value in ("int8", "int4"):
        raise UserError("--sample plans weights in bfloat16, fp8 or mxfp4; choose one of these as --weight_dtype.")
    target = targets.parse(_TARGET.value)
    _start_compilers(target)
    from s1jax.plan import sampling

    found = sampling.plan(
        presets.PRESETS[_MODEL.value],
        target,
        engine_flags.parse_mesh(engine_flags.MESH.value),
        slots=_SLOTS.value,
        cache_length=_LENGTH.value,
        weight_dtype=engine_flags.WEIGHT_DTYPE.value,
        cache_dtype=engine_flags.CACHE_DTYPE.value,
    )
    axes = " ".join(f"{axis}={size}" for axis, size in found.mesh.items() if size != 1) or "one device"
    kind = found.weight_dtype or sampling.DTYPE
    print(f"{found.target}: {axes}, weights in {kind}, {found.slots} sequences of {found.cache_length} tokens")
    for name, size in found.memory.items():
        print(f"  {name:<26}{size / 1e9:9.2f} GB")
    for name, size in sorted(found.collectives.items()):
        print(f"  {name:<26}{size / 1e6:9.2f} MB a step")
    if found.note:
        print(f"  note: {found.note}")
    if not found.fits:
        print("It does not fit. Fewer or shorter sequences, --cache_dtype=int8, fewer bits a weight, or more devices.")
    return 0 if found.fits else 1


def _check_writable(out: pathlib.Path) -> None:
    """Raises UserError if `out` cannot be written; does not change its content."""
    new = not out.exists()
    try:
        out.open("a").close()  # permissions say too little: root may write anywhere but in /proc
    except OSError as error:
        raise UserError(f"--out={out} can't be written ({error.strerror}); choose another file.") from None
    if new:
        out.unlink()


def _preset_of(checkpoint: str) -> str:
    """The published model that a missing checkpoint is named after (runs/qwen2p5_32b); else empty."""
    path = pathlib.Path(checkpoint)
    if path.name not in presets.PRESETS or path.exists():
        return ""
    terminal.note(f"{checkpoint} is not here; its shape is taken to be that of {path.name}.")
    return path.name


def _candidates(experiment: Experiment, devices: int, rows: int) -> list[list[Experiment]]:
    """Meshes of up to 8-way tensor or sequence parallelism x remat policies x micro-batches, for so many rows a step.

    Values of the experiment that differ from the defaults stay: `mesh.data`, and `mesh.tensor` with `mesh.sequence`.
    Its remat policy and micro-batches are tried as well. With full remat each candidate has a second form with the
    chunked MLP, which needs less memory and is not faster; forms are tried until one fits.
    """
    found = []
    train, asked = experiment.train, experiment.mesh
    policies = list(dict.fromkeys((train.remat, *_POLICIES)))
    inner = [("tensor", 1), *((axis, size) for axis in ("tensor", "sequence") for size in (2, 4, 8))]
    meshes = [{axis: size} for axis, size in inner]
    if (asked.tensor, asked.sequence) != (1, 1):
        meshes = [{"tensor": asked.tensor, "sequence": asked.sequence}]
    for axes, remat in itertools.product(meshes, policies):
        size, data = math.prod(axes.values()), max(asked.data, 1)
        if devices % (data * size) or rows % (devices // size):
            continue
        mesh = MeshConfig(**{"data": data, "fsdp": devices // (data * size), **axes})
        for accumulation in sorted({1, train.accumulation, rows * size // devices}):
            form = dataclasses.replace(train, remat=remat, accumulation=accumulation)
            forms = [form]
            if remat == "full" and mesh.tensor == 1 and train.mlp_parts == 1:
                forms.append(dataclasses.replace(form, mlp_parts=_MLP_PARTS))
            found.append([dataclasses.replace(experiment, mesh=mesh, train=one) for one in forms])
    return found


def _name(experiment: Experiment) -> str:
    mesh, train = experiment.mesh, experiment.train
    axes = " ".join(f"{axis}={size}" for axis, size in dataclasses.asdict(mesh).items() if size != 1 or axis == "fsdp")
    parts = f" mlp_parts={train.mlp_parts}" if train.mlp_parts != 1 else ""
    return f"{axes} remat={train.remat} accumulation={train.accumulation}{parts}"


def _line(plan: Plan) -> str:
    verdict = "" if plan.fits else ", does not fit"
    return f"{plan.memory['peak'] / 1e9:.3g} GB, step {plan.seconds['step']:.3g} s{verdict}"


def _record(
    plan: Plan,
    experiment: Experiment,
    model: ModelConfig,
    steps: int,
    layout: layout_lib.Layout | None,
    teacher: ModelConfig | None,
) -> dict[str, Any]:
    """The plan as JSON, with what the whole recipe takes."""
    values = dataclasses.asdict(plan)
    experiment = dataclasses.replace(experiment, mesh=MeshConfig(**plan.mesh))  # as it came to be: no -1
    seconds = plan.seconds["step"]
    if _MFU.value:
        seconds = plan.mfu * seconds / _MFU.value
    recipe = {"steps": steps, "step_seconds": seconds, "minutes": steps * seconds / 60, "assumed_mfu": _MFU.value}
    if layout:
        tokens: Any = layout.tokens  # a mean
        pairs = perf.pairs_by_window(layout.lengths, model, *([] if teacher is None else [teacher]))
        pairs = {window: number * layout.pairs / pairs[0] for window, number in pairs.items()}
        lora = experiment.lora
        adapters = adapters_lib.num_params(model, lora, active=True) if lora.rank else 0
        needed = perf.train_flops(model, tokens, pairs, teacher, adapters) / plan.devices
        recipe |= {"tokens": steps * layout.tokens, "sequences_per_step": layout.sequences}
        recipe["padding"] = 1 - layout.tokens / (plan.rows * plan.block_size)
        recipe["mfu_of_tokens"] = needed / targets.parse(plan.target).chip.flops / seconds
        if _MFU.value:
            recipe["minutes_by_tokens"] = recipe["minutes"] * recipe["mfu_of_tokens"] / _MFU.value
    recipe["dollars"] = perf.dollars(steps * seconds, plan.devices, experiment.cost.per_device_hour)
    return values | {"fits": plan.fits, "mfu": plan.mfu, "recipe": recipe, "settings": _name(experiment)}


def _table(plan: Plan, record: dict[str, Any]) -> list[str]:
    p, recipe = plan, record["recipe"]
    lines = [f"{p.target}: {p.devices} devices, {record['settings']}, {p.rows} rows of {p.block_size} ids"]
    executed = f"TFLOP ({p.executed_flops / p.model_flops:.2f} x)"
    for kind, size in p.memory.items():
        lines.append(f"  {kind:<26}{size / 1e9:9.2f} GB")
    lines.append(f"  {'model FLOPs':<26}{p.model_flops / 1e12:9.2f} TFLOP a device and step")
    lines.append(f"  {'executed FLOPs':<26}{p.executed_flops / 1e12:9.2f} {executed}")
    for kind, size in sorted(p.collectives.items()):
        alone = p.exposed.get(kind, 0.0)
        lines.append(f"  {kind:<26}{size / 1e9:9.2f} GB, {alone / 1e9:.2f} of them beside no product")
    for kind, seconds in p.seconds.items():
        lines.append(f"  {'roofline: ' + kind:<26}{seconds:9.3f} s")
    lines.append(f"  {'MFU at the roofline':<26}{100 * p.mfu:9.1f} %")
    how = (
        f"at {100 * _MFU.value:.0f} % MFU, padding included"
        if _MFU.value
        else "at the roofline, which no machine reaches"
    )
    cost = f", ${recipe['dollars']:,.2f}" if recipe["dollars"] else ""
    lines.append(f"  the recipe: {recipe['steps']} steps, {recipe['minutes']:.1f} minutes{cost} {how}")
    if "tokens" in recipe:
        lines.append(
            f"    {recipe['tokens'] / 1e6:.1f} M tokens in all, {recipe['sequences_per_step']:.1f} sequences a step, "
            f"{100 * recipe['padding']:.0f} % of the places are padding, by lengths that are made up"
        )
        lines.append(f"    {100 * recipe['mfu_of_tokens']:.1f} % MFU of the tokens alone, as training counts it")
    if "minutes_by_tokens" in recipe:
        lines[-1] += f"; {100 * _MFU.value:.0f} % of that kind take {recipe['minutes_by_tokens']:.1f} minutes"
    return [*lines, f"  note: {p.note}"] if p.note else lines
