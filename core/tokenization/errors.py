"""The seam where the Rust `tokenizers` library's errors become `TokenizerError`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from core.errors import TokenizerError


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Raise `TokenizerError` for whatever the library raises while it does `what`.

    A panic of the Rust code reaches Python as `pyo3_runtime.PanicException`, which cannot be imported and derives
    from `BaseException`: hence the name.
    """
    try:
        yield
    except TokenizerError:
        raise
    except Exception as error:
        raise TokenizerError(f"{what}: {error}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{what}: {error}") from error
