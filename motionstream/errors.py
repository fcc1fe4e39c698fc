"""The one error that is shown to a person as it stands, and how other errors become it."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

MOST_QUOTED = 200  # characters of somebody else's message


class InputError(ValueError):
    """Bad input from a person. The message names the value, the limit and the remedy, in a sentence."""


def one_line(error: BaseException) -> str:
    """The beginning of what an error says: others' messages may run over many lines."""
    return textwrap.shorten(str(error), MOST_QUOTED, placeholder=" ...")


@contextmanager
def writing(path: str | Path, remedy: str = "make room, or name another place") -> Iterator[None]:
    """What keeps the block from writing `path`, a full disk or a place that cannot be: `InputError`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"cannot write {path}: {why}; {remedy}") from error


def make_folder(folder: Path) -> None:
    """For what a command writes to --out; `InputError` where it cannot be."""
    with writing(folder, "name another folder with --out"):
        folder.mkdir(parents=True, exist_ok=True)
