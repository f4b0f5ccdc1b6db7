"""Runs a command: parses its flags and turns errors into one sentence and an exit code."""

from __future__ import annotations

import errno
import functools
import gc
import os
import pathlib
import re
import resource
import runpy
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging

from s1jax.cli import configs, terminal
from s1jax.errors import UserError, install
from s1jax.io import files

BAD_INPUT = 2  # exit code
CRASHED = 1  # likewise, after a traceback
INTERRUPTED = 130  # likewise, after Ctrl-C, as of shells

# By default jax gives a process three quarters of a GPU: 63.7 GB of an H100, for which s1jax/plan/targets.py assumes
# 80. The rest is for CUDA, NCCL and cuDNN.
_MEMORY_FRACTION = "0.95"
_MEMORY_NAMES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")  # jax refuses both at a time

_NO_ACCESS = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG,
)  # fmt: skip
_FILES = 4096  # open at one time
_CONFIG_FILE = "Error whilst parsing config file"  # how config_flags introduces what a config file raised


def run(main: Callable[..., int | None], config_flag: str = "", positional: bool = False) -> None:
    """Parses the flags, runs `main` and exits with what it returns (None: 0).

    Args:
      main: reads its flags itself; raises `UserError` for whatever the user can correct.
      config_flag: name of the `config_flags` file flag, whose errors get messages of their own.
      positional: hand `main` a list of the arguments that are not flags, instead of refusing them.

    Exits with `BAD_INPUT` after printing `error: <sentence>` to stderr for a UserError, a flag that does not parse, a
    broken config file, a path that may not be read or written, a full disk or memory; without a traceback. Exits with
    `terminal.LOST` or `terminal.PIPE_CLOSED` if `main` succeeded but standard output could not be written.
    """
    terminal.prepare()
    if config_flag:
        try:
            sys.argv[:] = configs.with_paths(sys.argv, config_flag)
        except UserError as error:
            sys.exit(fail(str(error)))
    module = sys.modules[main.__module__]
    sys.modules["__main__"].__doc__ = module.__doc__  # absl prints it, and the key flags of sys.argv[0], as help
    for name, found in flags.FLAGS.flags_by_module_dict().items():
        for flag in found if name.startswith("s1jax.cli.") else ():  # the command's own, and those of files it shares
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    # Importing and tracing create many long-lived objects; garbage collection over them took 0.35 of 4 s (first_id).
    gc.set_threshold(100_000)
    app.run(
        lambda argv: leave(_ended(functools.partial(main, argv[1:]) if positional else main)),
        flags_parser=lambda argv: _parse(argv, config_flag, positional),
    )


def leave(code: int | None) -> int | None:
    """Returns `code`; after Ctrl-C or an error it ends the process at once.

    A normal exit waits for threads. Those of Orbax wait for ever if one of them could not start, and after Ctrl-C a
    running compilation would crash. Processes with peers leave normally, because they disconnect from each other first.
    """
    if code == INTERRUPTED or (code in (BAD_INPUT, CRASHED) and not _has_peers()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _has_peers() -> bool:
    jax = sys.modules.get("jax")  # not imported here: most errors come before it is needed
    return jax is not None and jax.distributed.is_initialized()


def _ended(main: Callable[[], int | None]) -> int | None:
    """Returns the exit code of `main`; prints the traceback of an unexpected error."""
    try:
        return _written(guarded(main))
    except Exception:
        traceback.print_exc()
        return CRASHED


def _written(code: int | None) -> int | None:
    """Returns `code`, or another one if `main` succeeded but standard output could not be written."""
    error = terminal.lost()
    if code or error is None or error.errno == errno.EBADF:  # closed by whoever started this
        return code
    if error.errno == errno.EPIPE:
        return terminal.PIPE_CLOSED
    fail(f"standard output could not be written ({(error.strerror or '').lower()}); the files are complete.")
    return terminal.LOST


def guarded(main: Callable[[], int | None]) -> int | None:
    """Returns the result of `main`; for an error that the user can correct it prints a sentence, returns `BAD_INPUT`.

    After Ctrl-C it says how to continue and returns `INTERRUPTED`. It sets the share of a GPU's memory that jax takes,
    unless the environment does.
    """
    if not any(name in os.environ for name in _MEMORY_NAMES):
        os.environ[_MEMORY_NAMES[0]] = _MEMORY_FRACTION
    _raise_file_limit()
    try:
        return main()
    except KeyboardInterrupt:
        print("interrupted; run the same command again", file=sys.stderr, flush=True)
        return INTERRUPTED
    except UserError as error:
        return fail(str(error))
    except OSError as error:
        if error.errno in _NO_ACCESS and error.filename:
            return fail(f"{error.filename}: {(error.strerror or '').lower()}; choose another path, or change that one.")
        if error.errno not in files.FULL:
            raise
        what, remedy = files.FULL[error.errno]
        where = f" while writing {error.filename}" if error.filename else ""
        return fail(f"{what}{where}; {remedy} and run the same command again.")
    except RuntimeError as error:
        said = " ".join(str(error).split())[:300]
        if said.startswith("RESOURCE_EXHAUSTED"):
            return fail(
                f"the memory of the device is not enough ({said}); give fewer or shorter rows at a time, more devices,"
                " or smaller types. python -m launch.plan says what a training run takes."
            )
        if "can't start new thread" in said:
            return fail("this process may not start more threads; raise its limits (ulimit -v, ulimit -u).")
        if not said.startswith("Unable to initialize backend"):
            raise
        return fail(
            f"jax found no device: {said}; install the extra for it ({install('cuda')}, or"
            " s1jax[tpu]), end the process that has it, or change JAX_PLATFORMS."
        )
    except MemoryError:
        return fail("the memory of this machine is not enough; give fewer or shorter rows, or take a larger machine.")


def _raise_file_limit() -> None:
    """Raises the limit on open files as far as allowed, to at most 4,096: a save opens one file per array."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _parse(argv: Sequence[str], config_flag: str, positional: bool) -> list[str]:
    try:
        rest = flags.FLAGS(list(argv))
        if config_flag:  # a file that could not be read is reported at the first use only
            config: Any = flags.FLAGS[config_flag].value
            _ = config and config.keys()
    except Exception as error:
        # config_flags raises what the config file raised, and one of three errors for an unknown setting.
        frames = traceback.extract_tb(error.__traceback__)
        loading = any(frame.name in ("_LoadConfigModule", "get_config") for frame in frames)
        if loading or _CONFIG_FILE in str(error):
            sys.exit(fail(f"the file of --{config_flag} does not load: {_last_line(error)}"))
        elif isinstance(error, flags.Error):
            sys.exit(fail(f"{' '.join(str(error).split())} (--helpfull lists all flags)"))
        file = _value_of(config_flag, argv) if config_flag else ""
        if file and isinstance(error, OSError):
            shipped = pathlib.Path(file).stem
            own = f"; --{config_flag}={shipped} is the one that comes with s1jax" if shipped in configs.files() else ""
            sys.exit(fail(f"--{config_flag}={file} is not a readable Python file{own or '; give one of configs/'}."))
        if not file or not isinstance(error, (AttributeError, KeyError, TypeError)):
            raise
        get_config = runpy.run_path(file).get("get_config")
        if not callable(get_config):
            sys.exit(fail(f"{file} has no function get_config; give one of configs/."))
        there = get_config()
        given = [part for part in argv if part.startswith(f"--{config_flag}.")]
        wrong = next((part for part in given if not _is_setting(there, part.partition("=")[0])), None)
        if wrong is None:
            raise
        sys.exit(fail(f"{wrong} is not a setting of {file}; see s1jax/config/experiment.py for those there are."))
    if flags.FLAGS["verbosity"].using_default_value:
        logging.set_verbosity(logging.FATAL)  # Orbax logs every file it writes, and errors that it raises as well
    if len(rest) > 1 and not positional:
        sys.exit(fail(f"{rest[1]!r} is not a flag; every argument is --name=value, --helpfull lists them."))
    return rest


def _value_of(flag: str, argv: Sequence[str]) -> str:
    """The value of --flag=value or --flag value; empty if the flag is not given."""
    for part, after in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = part.partition("=")
        if name == f"--{flag}":
            return value if equals else after
    return ""


def _is_setting(config: Any, flag: str) -> bool:
    """Whether a configuration has what the flag --config.a.b names."""
    for name in flag.split(".")[1:]:
        if not hasattr(config, "keys") or name not in config:
            return False
        config = config[name]
    return True


def _last_line(error: Exception) -> str:
    # The text of absl's own errors ends in the traceback of what the file raised.
    text = str(error) if isinstance(error, flags.Error) else "".join(traceback.format_exception(error))
    return _wrong_type(text) or text.strip().splitlines()[-1]


def _wrong_type(text: str) -> str:
    """A sentence about a setting whose type a config file changes, if the traceback `text` is about that."""
    found = re.search(
        r"Could not override field '(\w+)'.*?original type <class '(?:\w+\.)*(\w+)'>.*?'(\w+)'>", text, re.S
    )
    if found is None:
        return ""
    lines = re.findall(r'File "([^"]*)", line (\d+), in .*\n +(.*)', text)
    file, number, code = next((line for line in reversed(lines) if "ml_collections" not in line[0]), ("", "?", ""))
    name, given, wanted = found.groups()
    given = {"ConfigDict": "group of settings"}.get(given, given)
    remedy = f"give it a value of type {wanted}"
    if name == "model":
        remedy = (
            "give the shape to config.defaults(dict(d_model=..., ...)) as configs/countdown_base.py does, or a name"
        )
    return f"line {number} of {file} (`{code}`) makes the setting `{name}` a {given}, and it is a {wanted}; {remedy}."


def fail(sentence: str) -> int:
    """Prints the sentence as an error and returns `BAD_INPUT`."""
    print(f"error: {terminal.safe(sentence)}", file=sys.stderr, flush=True)
    return BAD_INPUT
