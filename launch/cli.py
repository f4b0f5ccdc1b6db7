"""What all launchers share: they end in one sentence and a non-zero exit code where the input is wrong."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence

from absl import app, flags

from s1jax.config import InputError

BAD_INPUT = 2  # exit code


def run(main: Callable[[], int | None], config_flag: str = "") -> None:
    """Parses the flags, runs `main` and exits with what it returns (None: 0).

    Args:
      main: reads its flags itself; raises `InputError` for whatever the user can correct.
      config_flag: name of the `config_flags` file flag, whose own errors are told apart in the message.

    Exits with `BAD_INPUT` after printing `error: <sentence>` to stderr for an InputError, a flag that does not parse,
    a broken config file or a full disk; no traceback.
    """
    app.run(lambda _: _guarded(main), flags_parser=lambda argv: _parse(argv, config_flag))


def _guarded(main: Callable[[], int | None]) -> int | None:
    try:
        return main()
    except InputError as error:
        return _fail(str(error))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        where = f" while writing {error.filename}" if error.filename else ""
        return _fail(f"no space left on the device{where}; free some space and run the same command again.")


def _parse(argv: Sequence[str], config_flag: str) -> list[str]:
    try:
        rest = flags.FLAGS(list(argv))
    except flags.Error as error:
        sys.exit(_fail(f"{' '.join(str(error).split())}; --help lists the flags."))
    except Exception as error:
        # config_flags raises whatever the config file raised, and KeyError or AttributeError for an unknown key.
        if not config_flag or not any(part.startswith(f"--{config_flag}") for part in argv):
            raise
        sys.exit(_fail(_config_sentence(error, argv, config_flag)))
    if len(rest) > 1:
        sys.exit(_fail(f"{rest[1]!r} is no flag; every argument is --name=value, --help lists them."))
    return rest


def _config_sentence(error: Exception, argv: Sequence[str], config_flag: str) -> str:
    """Says which override or which line of the config file is at fault."""
    last = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
    if isinstance(error, (AttributeError, KeyError)) and "Error whilst parsing config file" not in str(error):
        overrides = [part for part in argv if part.startswith(f"--{config_flag}.")]
        named = [part for part in overrides if _leaf(part) in str(error)] or overrides
        return f"{named[0] if named else last} is not a setting of the configuration ({last.strip(chr(34))})."
    return f"the file of --{config_flag} does not load: {' '.join(last.split())}."


def _leaf(override: str) -> str:
    return override.split("=")[0].split(".")[-1]


def _fail(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    return BAD_INPUT
