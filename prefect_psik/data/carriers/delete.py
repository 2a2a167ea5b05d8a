"""Deletion on this machine: delete everything that can be deleted, and report what is left, and why."""

from __future__ import annotations

import errno
import os
import shutil
from typing import Any


def delete_tree(path: str) -> list[OSError]:
    """Delete a file, a link, or a directory with everything in it; a missing path is no error.

    Returns:
        Why entries are left, each with its path as `filename`; empty only if nothing is left.
    """
    left: list[OSError] = []

    def note(_function: Any, name: str, failure: Any) -> None:
        err = failure[1]
        if not isinstance(err, FileNotFoundError):  # another process deleted it
            # The error's own `filename` may be only the last part of the path.
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
