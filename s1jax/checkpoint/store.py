"""Self-contained checkpoints: a folder that holds all that is needed to sample from a model or to go on training it.

    CKPT/s1jax.json     format, model configuration, chat format, provenance
    CKPT/tokenizer/     the tokenizer's own files
    CKPT/params/        the weights (Orbax); sampling reads nothing else. Of a run with LoRA the adapters, and
                        s1jax.json names the checkpoint that they belong to
    CKPT/optimizer/     step and optimizer state (Orbax); only where training goes on from here
    CKPT/digests.json   size and SHA-256 of every other file; written last, so a folder without it was never finished

Orbax does not notice flipped bits in its data files, hence the digests, which are verified before anything is loaded.
A training run keeps such folders as WORKDIR/checkpoints/STEP.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import zlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from s1jax.checkpoint import digests, locate, trees
from s1jax.checkpoint.locate import finished_steps as finished_steps
from s1jax.checkpoint.locate import hold as hold
from s1jax.checkpoint.locate import resolve as resolve
from s1jax.checkpoint.locate import step_folder as step_folder
from s1jax.checkpoint.locate import step_of as step_of
from s1jax.checkpoint.locate import using as using
from s1jax.checkpoint.merge import AdapterInfo as AdapterInfo
from s1jax.checkpoint.merge import merge as merge
from s1jax.config import schema
from s1jax.config.lora import OFF, LoraConfig
from s1jax.config.model import ModelConfig
from s1jax.errors import UserError
from s1jax.io import files, paths
from s1jax.text.chat import ChatFormat
from s1jax.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from jax.sharding import Mesh

# Format 1 has the model in its flat form and without its family, see `ModelConfig.dense`; format 2 has groups; format 3
# is 2 with adapters in place of weights.
FORMAT, ADAPTER_FORMAT, READABLE_FORMATS = 2, 3, (1, 2, 3)
_CHUNK_BYTES = 1 << 25  # of an array, in one file


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What a checkpoint says of itself without its weights; `adapters` if it has adapters in place of weights."""

    config: ModelConfig
    tokenizer: Tokenizer
    chat: ChatFormat
    provenance: dict[str, Any]
    adapters: AdapterInfo | None = None


@dataclasses.dataclass(frozen=True)
class Model:
    """Weights (tree of `s1jax.model.params`) with all that is needed to use them.

    `source` is the path that they were loaded from, as it was given; `fingerprint` stands for the checkpoint's contents
    (`digests.fingerprint`); `step` is that of a training run's checkpoint, None for others. All are empty for weights
    that were not loaded.
    """

    params: Mapping[str, Any]
    config: ModelConfig
    tokenizer: Tokenizer
    chat: ChatFormat
    provenance: dict[str, Any]
    source: str = ""
    fingerprint: str = ""
    step: int | None = None


def save_model(
    path: str | os.PathLike[str],
    params: Mapping[str, Any],
    config: ModelConfig,
    tokenizer: Tokenizer,
    chat: ChatFormat,
    provenance: dict[str, Any],
    adapters: AdapterInfo | None = None,
) -> None:
    """Writes a checkpoint without optimizer state.

    Args:
      path: folder to make; an unfinished one left by an earlier attempt is replaced.
      params: the tree of `s1jax.model.params`; with `adapters` that of `s1jax.model.adapters`.
      config: their shape.
      tokenizer: saved beside them.
      chat: saved beside them.
      provenance: JSON values that say how the weights came about.
      adapters: what the adapters belong to; None: these are weights.

    Raises:
      UserError: where the folder already holds something else, or the disk is full.
    """
    from orbax.checkpoint import v1 as ocp

    folder = paths.local(path, "checkpoint").absolute()
    with disk_errors(folder), paths.plain(folder) as safe:
        _make_room(folder)
        _write_descriptions(folder, Metadata(config, tokenizer, chat, provenance, adapters))
        # One file a chunk: with Orbax's default everything compressed stays in memory until the last array is done,
        # and host arrays are copied first. So a save adds less than 0.1 GB to the weights, whatever their size.
        streamed = trees.context()
        streamed.array.saving.use_ocdbt = False
        streamed.array.saving.use_zarr3 = False
        streamed.array.saving.storage_options.chunk_byte_size = _CHUNK_BYTES
        streamed.memory.deepcopy_host_arrays = False
        with streamed:
            ocp.save(safe / "params", params)
        trees.check_written(safe / "params", params, folder / "params")
        digests.write(folder)


def load_metadata(path: str | os.PathLike[str]) -> Metadata:
    """Reads configuration, tokenizer, chat format and provenance; imports neither jax nor Orbax.

    Raises:
      UserError: if `path` is not a finished checkpoint, or one of these files is damaged.
    """

    def read(folder: pathlib.Path) -> Metadata:
        digests.verify(folder, lambda name: "/" not in name or name.startswith("tokenizer/"))
        return _read_descriptions(folder)

    return using(path, read)


def load_model(
    path: str | os.PathLike[str],
    *,
    mesh: Mesh | None = None,
    dtype: npt.DTypeLike = "",
    host: bool = False,
    base: str = "",
) -> Model:
    """Loads a checkpoint's weights and descriptions, never its optimizer state.

    Adapters are merged into the weights that they belong to, see `s1jax.checkpoint.merge`.

    Args:
      path: a checkpoint, a training workdir (its newest step) or `package:NAME`.
      mesh: `jax.sharding.Mesh` onto which the weights are sharded by `s1jax.parallel`; None: the first device.
      dtype: floating type of the returned weights, such as "bfloat16"; empty keeps the stored one.
      host: return numpy arrays, which no device has held: half the memory where the device is the host.
      base: where the weights are that adapters belong to; empty: where they were when the adapters were trained.

    Raises:
      UserError: where the checkpoint is missing, unfinished, damaged or does not fit its own configuration; the weights
        of adapters are missing or others.
    """

    def read(folder: pathlib.Path) -> Model:
        digests.verify(folder, lambda name: not name.startswith("optimizer/"))
        about = _read_descriptions(folder)
        if about.adapters is None:
            params = load_params(folder / "params", about.config, mesh=mesh, dtype=dtype, host=host)
        else:
            params = _load_merged(folder, about.config, about.adapters, base, mesh=mesh, dtype=dtype, host=host)
        return Model(
            params, about.config, about.tokenizer, about.chat, about.provenance, os.fspath(path),
            digests.fingerprint(folder), step_of(folder),
        )  # fmt: skip

    return using(path, read)


def load_params(
    folder: pathlib.Path,
    config: ModelConfig,
    *,
    mesh: Mesh | None = None,
    dtype: npt.DTypeLike = "",
    host: bool = False,
    lora: LoraConfig = OFF,
) -> Any:
    """Loads the Orbax tree in `folder` after comparing its names and shapes with `config`; `lora`: of its adapters."""
    import jax
    from orbax.checkpoint import v1 as ocp

    from s1jax.model import adapters as adapters_lib
    from s1jax.model import decoder
    from s1jax.parallel import sharding

    wanted, axes = decoder.abstract_params(config), decoder.logical_axes(config)
    if lora.rank:
        wanted, axes = adapters_lib.abstract(config, lora, "float32"), adapters_lib.logical_axes(config, lora)
    with paths.plain(folder) as safe:
        stored = trees.read_metadata(safe, folder)
        trees.compare(stored, wanted, folder, "the weights do not belong to the model in s1jax.json")
        for name, leaf in trees.flatten(stored).items():
            if not np.issubdtype(leaf.dtype, np.floating) and leaf.dtype != ml_dtypes.bfloat16:
                raise UserError(f"{folder}: {name} has type {leaf.dtype}; weights are floating-point numbers.")
        if host:
            with trees.reading(folder):
                return _load_host(safe, trees.flatten(stored), dtype)
        if mesh is None:
            one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            shardings = jax.tree.map(lambda _: one, wanted)
        else:
            shardings = sharding.shardings(wanted, axes, mesh)

        def placed(path: Any, leaf: Any, old: Any, sharding: Any) -> jax.ShapeDtypeStruct:
            kept = path[-1] == jax.tree_util.DictKey("selection_bias")  # chooses experts in float32
            return jax.ShapeDtypeStruct(leaf.shape, old.dtype if kept else dtype or old.dtype, sharding=sharding)

        abstract = jax.tree_util.tree_map_with_path(placed, wanted, stored, shardings)
        own = mesh is None or mesh.is_multi_process is False
        with trees.reading(folder), trees.alone() if own else contextlib.nullcontext():
            return ocp.load(safe, abstract)


def load_adapters(path: str | os.PathLike[str]) -> tuple[dict[str, Any], AdapterInfo]:
    """Loads the adapters of a checkpoint, a tree of `s1jax.model.adapters` in numpy, without the weights.

    Raises:
      UserError: as `load_model`; the checkpoint has weights.
    """

    def read(folder: pathlib.Path) -> tuple[dict[str, Any], AdapterInfo]:
        digests.verify(folder, lambda name: not name.startswith("optimizer/"))
        about = _read_descriptions(folder)
        if about.adapters is None:
            raise UserError(
                f"{os.fspath(path)} has weights and no adapters; give a checkpoint of a run with lora.rank."
            )
        lora = about.adapters.lora
        return load_params(folder / "params", about.config, host=True, lora=lora), about.adapters

    return using(path, read)


def _load_merged(
    folder: pathlib.Path, config: ModelConfig, info: AdapterInfo, base: str, *, dtype: npt.DTypeLike, **how: Any
) -> Any:
    """The weights that the adapters in `folder` belong to, with the adapters added."""
    where = base or info.base
    try:
        found = load_model(where, **how)
    except UserError as error:
        raise UserError(
            f"{folder} has adapters for {where}: {str(error).rstrip('.')}; put that checkpoint there again, or merge"
            " the adapters with launch.convert --merge --base=CKPT."
        ) from error
    if found.fingerprint != info.fingerprint:
        raise UserError(
            f"{folder}: its adapters were trained for another checkpoint than {where} is now; give that one with"
            " launch.convert --merge --base=CKPT."
        )
    adapters = load_params(folder / "params", config, lora=info.lora, **how)
    params = merge(found.params, adapters, config, info.lora)
    if not dtype:
        return params
    import jax

    return jax.tree.map(lambda x: x.astype(dtype), params)


def _load_host(folder: pathlib.Path, stored: dict[str, Any], dtype: npt.DTypeLike) -> dict[str, Any]:
    """Loads array by array, the largest first, so that what Orbax reads ahead adds little to all that is there."""
    import jax
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    context.pytree.loading.partial_load = True
    params: dict[str, Any] = {}
    for name, leaf in sorted(stored.items(), key=lambda item: -int(np.prod(item[1].shape))):
        *folders, last = name.split("/")
        # Orbax returns numpy for numpy; only shape and type of this stand-in count, it has no memory of its own.
        kind = leaf.dtype if last == "selection_bias" else dtype or leaf.dtype
        wanted: Any = np.broadcast_to(np.zeros((), kind), leaf.shape)
        for part in reversed(name.split("/")):
            wanted = {part: wanted}
        node = params
        for part in folders:
            node = node.setdefault(part, {})
        with context:
            (node[last],) = jax.tree.leaves(ocp.load(folder, wanted))
    return params


class Checkpointer:
    """Saves a run's state in the background, keeps the newest few and those being read, and gives back the newest.

    Use it as a context manager: leaving it waits for the last save, without which nothing would be on the disk.
    """

    def __init__(self, workdir: pathlib.Path, keep: int, about: Metadata):
        """Makes nothing yet; `about` goes into every checkpoint."""
        self._workdir, self._keep, self._about = workdir.absolute(), keep, about
        self._held = contextlib.ExitStack()
        self._safe: pathlib.Path | None = None
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: concurrent.futures.Future[None] | None = None

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.wait()
        finally:
            self._pool.shutdown()
            self._held.close()

    def save(
        self, step: int, params: Any, optimizer: Any, progress: dict[str, Any], *, protect: int | None = None
    ) -> None:
        """Copies the state to the host and writes it in the background; waits for an earlier save first.

        Args:
          step: optimizer steps taken so far; names the folder. A finished checkpoint of that step is left alone.
          params: the weights.
          optimizer: tree of arrays that training needs besides them.
          progress: JSON values joined to the provenance, such as the step and the loss.
          protect: a step whose checkpoint is not removed, however many newer ones there are.

        Raises:
          UserError: where the disk is full, for this save or the one before.
        """
        import jax
        from orbax.checkpoint import v1 as ocp

        self.wait()
        folder = step_folder(self._workdir, step)
        if digests.is_there(folder):
            return
        first = jax.process_index() == 0
        with disk_errors(folder):
            if first:
                shutil.rmtree(folder, ignore_errors=True)  # what an interrupted save or removal left
                _make_room(folder)
                provenance = self._about.provenance | progress
                _write_descriptions(folder, dataclasses.replace(self._about, provenance=provenance))
            if jax.process_count() > 1:
                from jax.experimental import multihost_utils

                multihost_utils.sync_global_devices(f"checkpoint {step}")
            trees_of = {"params": params, "optimizer": optimizer}
            with trees.context():
                parts = [ocp.save_async(self._plain(step) / name, tree) for name, tree in trees_of.items()]
        # Without the arrays, whose memory the next step takes.
        wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), trees_of)
        self._pending = self._pool.submit(self._finish, step, parts, wanted, first, protect)

    def wait(self) -> None:
        """Returns when everything saved so far is on the disk.

        Raises:
          UserError: where the disk is full.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def newest_step(self) -> int | None:
        steps = finished_steps(self._workdir)
        return steps[-1] if steps else None

    def restore(self, step: int, params: Any, optimizer: Any) -> tuple[Any, Any]:
        """Returns (params, optimizer) of a step, placed and typed like the abstract trees that are given.

        Raises:
          UserError: where a file is damaged or the trees differ.
        """
        import jax
        from orbax.checkpoint import v1 as ocp

        from s1jax.parallel import processes

        folder = step_folder(self._workdir, step)
        index, count = jax.process_index(), jax.process_count()  # every process verifies some of the files
        processes.together(lambda: digests.verify(folder, lambda name: zlib.crc32(name.encode()) % count == index))
        if not (folder / "optimizer").is_dir():
            raise UserError(
                f"{folder} has no optimizer state to go on from; remove it, or give it to another run as init_from."
            )
        safe = self._plain(step)
        for part, wanted, fault in (
            ("params", params, "the weights are not those of the run's model"),
            ("optimizer", optimizer, "it was saved with another optimizer.name, which going on from it needs"),
        ):
            trees.compare(trees.read_metadata(safe / part, folder / part), wanted, folder / part, fault)
        with trees.reading(folder):
            return ocp.load(safe / "params", params), ocp.load(safe / "optimizer", optimizer)

    def _plain(self, step: int) -> pathlib.Path:
        """The folder of a step as Orbax can have it."""
        if self._safe is None:
            self._safe = self._held.enter_context(paths.plain(self._workdir))
        return step_folder(self._safe, step)

    def _finish(self, step: int, parts: list[Any], wanted: dict[str, Any], first: bool, protect: int | None) -> None:
        folder = step_folder(self._workdir, step)
        with disk_errors(folder):
            for part in parts:
                part.result()
            if not first:
                return
            for name, tree in wanted.items():
                trees.check_written(self._plain(step) / name, tree, folder / name)
            digests.write(folder)
            kept = finished_steps(self._workdir)[-self._keep :]
            for old in locate.all_steps(self._workdir):
                if old < kept[-1] and old not in kept and old != protect:
                    locate.remove(step_folder(self._workdir, old))  # or after the next save, where it is being read


@contextlib.contextmanager
def disk_errors(folder: pathlib.Path) -> Iterator[None]:
    """Turns whatever a full disk or a limit of this process raises, in Orbax or here, into an UserError."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            for number, (what, remedy) in files.FULL.items():
                if getattr(cause, "errno", None) == number or os.strerror(number) in str(cause):
                    raise UserError(
                        f"{what} while writing {folder}; {remedy} and run the same command again (finished checkpoints"
                        " are kept)."
                    ) from error
            cause = cause.__cause__ or cause.__context__
        raise


def _make_room(folder: pathlib.Path) -> None:
    """Makes `folder`, replacing an unfinished checkpoint; refuses anything else that is in the way."""
    if folder.is_dir() and any(folder.iterdir()):
        if digests.is_there(folder) or not (folder / "s1jax.json").exists():
            raise UserError(f"{folder} exists and is not empty; remove it or choose another folder.")
        shutil.rmtree(folder)
    elif folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)


def _write_descriptions(folder: pathlib.Path, about: Metadata) -> None:
    text = {
        "format": FORMAT if about.adapters is None else ADAPTER_FORMAT,
        "model": schema.to_dict(about.config),
        "chat": schema.to_dict(about.chat),
        "provenance": about.provenance,
    }
    if about.adapters is not None:
        text["adapters"] = schema.to_dict(about.adapters)
    (folder / "s1jax.json").write_text(json.dumps(text, indent=2) + "\n")
    about.tokenizer.save(folder / "tokenizer")


def _read_descriptions(folder: pathlib.Path) -> Metadata:
    file = folder / "s1jax.json"
    try:
        about = json.loads(file.read_bytes())
        if not isinstance(about, dict):
            raise ValueError(f"it holds {type(about).__name__} instead of an object")
        for part in ("model", "chat", "provenance"):
            if "format" in about and about["format"] in READABLE_FORMATS and not isinstance(about.get(part), dict):
                raise ValueError(f"{part} is missing or no object")
    except (ValueError, RecursionError, FileNotFoundError, IsADirectoryError) as error:
        said = " ".join(str(error).split())[:160]
        raise UserError(f"{file} does not describe a checkpoint ({said}); use another one or copy it again.") from error
    if about.get("format") not in READABLE_FORMATS:
        known = " and ".join(map(str, READABLE_FORMATS))
        raise UserError(f"{file} has format {about.get('format')!r:.40}; this version of s1jax reads formats {known}.")
    adapters = None
    if about["format"] == ADAPTER_FORMAT:
        adapters = schema.from_dict(AdapterInfo, about.get("adapters") or {}, f"{file}: adapters")
    return Metadata(
        schema.from_dict(ModelConfig, about["model"], f"{file}: model"),
        Tokenizer.load(folder / "tokenizer"),
        schema.from_dict(ChatFormat, about["chat"], f"{file}: chat"),
        about["provenance"],
        adapters,
    )
