"""What all launchers share: they end in one sentence and a non-zero exit code where the input is wrong."""

from __future__ import annotations

import errno
import gc
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging

from s1jax.config import InputError

BAD_INPUT = 2  # exit code

_CONFIG_FILE = "Error whilst parsing config file"  # how config_flags introduces what a config file raised


def run(main: Callable[[], int | None], config_flag: str = "") -> None:
    """Parses the flags, runs `main` and exits with what it returns (None: 0).

    Args:
      main: reads its flags itself; raises `InputError` for whatever the user can correct.
      config_flag: name of the `config_flags` file flag, whose own errors are told apart in the message.

    Exits with `BAD_INPUT` after printing `error: <sentence>` to stderr for an InputError, a flag that does not parse,
    a broken config file or a full disk; no traceback.
    """
    # Importing and tracing make many objects that stay: looking for garbage among them took 0.35 of 4 s (first_id).
    gc.set_threshold(100_000)
    app.run(lambda _: guarded(main), flags_parser=lambda argv: _parse(argv, config_flag))


def guarded(main: Callable[[], int | None]) -> int | None:
    """Returns what `main` returns, or prints the sentence of what the user can correct and returns `BAD_INPUT`."""
    try:
        return main()
    except InputError as error:
        return fail(str(error))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        where = f" while writing {error.filename}" if error.filename else ""
        return fail(f"no space left on the device{where}; free some space and run the same command again.")


def _parse(argv: Sequence[str], config_flag: str) -> list[str]:
    try:
        rest = flags.FLAGS(list(argv))
    except Exception as error:
        # config_flags raises whatever the config file raised, and KeyError or AttributeError for an unknown setting.
        loading = any(frame.name == "_LoadConfigModule" for frame in traceback.extract_tb(error.__traceback__))
        if loading or _CONFIG_FILE in str(error):
            sys.exit(fail(f"the file of --{config_flag} does not load: {_last_line(error)}"))
        elif isinstance(error, flags.Error):
            sys.exit(fail(f"{' '.join(str(error).split())} (--help lists the flags)"))
        elif not config_flag or not isinstance(error, (AttributeError, KeyError)):
            raise
        overrides = [part for part in argv if part.startswith(f"--{config_flag}.")]
        named = [part for part in overrides if part.split("=")[0].split(".")[-1] in str(error)] or overrides
        sys.exit(fail(f"{named[0]} is not a setting of the configuration; see s1jax/config.py for those there are."))
    if config_flag:
        flag: Any = flags.FLAGS[config_flag]
        try:
            _ = flag.value and flag.value.keys()
        except OSError:  # config_flags reports a file it could not read at the first use only
            sys.exit(fail(f"--{config_flag}={flag.config_filename} is no readable Python file; give one of configs/."))
    if flags.FLAGS["verbosity"].using_default_value:
        logging.set_verbosity(logging.FATAL)  # Orbax logs every file it writes, and errors that it raises as well
    if len(rest) > 1:
        sys.exit(fail(f"{rest[1]!r} is no flag; every argument is --name=value, --help lists them."))
    return rest


def _last_line(error: Exception) -> str:
    if isinstance(error, flags.Error):  # its text ends in the traceback of what the file raised
        return str(error).strip().splitlines()[-1]
    return traceback.format_exception_only(error)[-1].strip()


def fail(sentence: str) -> int:
    """Prints the sentence as an error and returns `BAD_INPUT`."""
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    return BAD_INPUT
