"""Deletion on this machine: all that can be deleted goes, and what stays is named with why."""

from __future__ import annotations

import errno
import os
import shutil
from typing import Any


def delete_tree(path: str) -> list[OSError]:
    """Delete a file, a link, or a directory with all in it; one that does not exist is no error.

    Returns:
        Why some of it stays, each with its path as `filename`; empty only where nothing is left.
    """
    left: list[OSError] = []

    def note(_function: Any, name: str, failure: Any) -> None:
        err = failure[1]
        if not isinstance(err, FileNotFoundError):  # somebody else deleted it
            # Its own file name may be the last part of the path alone.
            left.append(
                OSError(getattr(err, "errno", None) or errno.EIO, getattr(err, "strerror", None) or str(err), name)
            )

    try:
        if os.path.isdir(path) and not os.path.islink(path):  # noqa: PTH112, PTH114 - as rmtree sees it
            shutil.rmtree(path, onerror=note)
        else:
            os.unlink(path)  # noqa: PTH108
    except FileNotFoundError:
        pass
    except RecursionError:
        left.append(OSError(errno.ENAMETOOLONG, "its directories are nested too deeply", path))
    except OSError as err:
        left.append(err)
    if not os.path.lexists(path):
        return []
    return left or [OSError(errno.ENOTEMPTY, "another process is writing there", path)]
