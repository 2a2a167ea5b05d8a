"""Whose a prefix, a job directory and its records are: what somebody else may have put there is not used."""

from __future__ import annotations

import errno
import os
import pwd
import shlex
import socket
import stat
from typing import Iterator

#: What decides which script runs and how a job ended. Until job.json is written, the rest is still being made.
JOB_PARTS = (
    ("prefect/job.json", stat.S_IFREG),
    ("prefect/script", stat.S_IFREG),
    ("spec.json", stat.S_IFREG),
    ("status.csv", stat.S_IFREG),
    ("log", stat.S_IFDIR),
)
#: Links that are followed on the way to a prefix, as in Linux.
LINKS = 40
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class NotOurs(PermissionError):
    """Somebody else owns something, or can replace it; the text is the whole sentence."""


def _trusted(found: os.stat_result) -> bool:
    return found.st_uid in (0, os.geteuid())


def _not_ours(path: str, found: os.stat_result, why: str, advice: str) -> NotOurs:
    return NotOurs(f"{path} on {socket.gethostname()} {why} ({_described(found)}). {advice}")


def _described(found: os.stat_result) -> str:
    """Owner, group and mode, for people."""
    mode = "link" if stat.S_ISLNK(found.st_mode) else f"mode {stat.S_IMODE(found.st_mode):04o}"
    return f"owner {_login(found.st_uid)}, group {_group(found.st_gid)}, {mode}"


def _login(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _group(gid: int) -> str:
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return f"gid {gid}"


def _check_owned(path: str, found: os.stat_result, kind: int) -> None:
    """Refuse what is not ours, or not of this kind: `stat.S_IFDIR`, `S_IFREG` (a plain file) or `S_IFLNK`.

    Raises:
        NotOurs: It belongs neither to this user nor to root, or is a link, or of another kind.
    """
    advice = "Nothing in it was used. Find out who put it there, and move it away or choose another prefix."
    if not _trusted(found):
        if os.geteuid() == 0:
            advice += " Or run the worker or endpoint as its owner."
        if _login(found.st_uid) == "nobody":
            advice += " Network file systems show nobody where they do not know or not trust a user."
        raise _not_ours(path, found, _not_of_ours(), advice)
    if stat.S_ISLNK(found.st_mode) and kind != stat.S_IFLNK:
        raise _not_ours(path, found, "is a link, and what it leads to is not followed", advice)
    if stat.S_IFMT(found.st_mode) != kind:
        what = "directory" if kind == stat.S_IFDIR else "plain file"
        raise _not_ours(path, found, f"is not a {what}", advice)


def _check_closed(path: str, found: os.stat_result) -> None:
    """Refuse what somebody else may write.

    With a POSIX ACL the bits of the group are its mask, so write access for others by such an ACL is seen, too.

    Raises:
        NotOurs: The group or all may write it.
    """
    if found.st_mode & _OTHERS:
        who = "everybody" if found.st_mode & stat.S_IWOTH else f"the group {_group(found.st_gid)}"
        advice = f"Check that it is as you left it, then close it: {_chmod('go-w', path)}."
        raise _not_ours(path, found, f"can be written by {who}", advice)


def _job_directory(prefix: str, stamp: str) -> str:
    """Return the directory of a job, which need not exist; what exists is this user's or root's alone.

    Raises:
        NotOurs: It, one of its directories, or a record that decides what runs is not.
    """
    base = os.path.join(prefix, stamp)
    _check_one(base, stat.S_IFDIR)
    _check_one(os.path.join(base, "prefect"), stat.S_IFDIR)
    for name, kind in JOB_PARTS:
        if not _check_one(os.path.join(base, name), kind) and name == "prefect/job.json":
            break
    return base


def _check_one(path: str, kind: int) -> bool:
    """Say whether a path exists; it must be of this kind, and this user's or root's alone.

    Raises:
        NotOurs: It is not.
    """
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    _check_owned(path, found, kind)
    _check_closed(path, found)
    return True


def _check_place(prefix: str) -> list[str]:
    """Check a prefix, as far as it exists, and every directory and link on the way to it.

    Nobody but root and this user may be able to put something else in the place of a job directory: owners are
    these two, and where others may write, the sticky bit keeps entries their owners'. A directory of a group on
    purpose (setgid, as in mode 2770), or above the prefix one of another owner, is used, with a warning that its
    members or its owner could do so. The prefix itself is not everybody's, sticky or not, and no link.

    Returns:
        The warnings, as sentences.

    Raises:
        NotOurs: Somebody else could.
    """
    warnings = []
    for path, found in _way_to(prefix):
        if path == prefix:
            _check_owned(path, found, stat.S_IFDIR)
            shared = _is_of_a_group(found) or _is_sticky(found) or _is_private(path, found)
            if found.st_mode & _OTHERS and not shared:
                raise _not_ours(path, found, "can be written by others", f"Close it: {_how_to_close(path)}.")
        warnings += _check_step(path, found)
    return warnings


def _check_above(path: str) -> None:
    """Check every directory and link on the way to a path, and not the path.

    Raises:
        NotOurs: Somebody else could put something else in its place.
    """
    for step, found in _way_to(os.path.join(os.path.dirname(path), "")):
        _check_step(step, found)


def _check_step(path: str, found: os.stat_result) -> list[str]:
    """Check one directory or link on the way to a prefix, or the prefix; returns a warning, or none."""
    known = _trusted(found) or _is_unmapped_root(found)
    if known and not _is_loose(path, found):
        return []
    if _is_of_a_group(found) or _is_closed_directory(found):
        who = f"The group {_group(found.st_gid)}" if known else f"The owner of {path}, {_login(found.st_uid)},"
        cure = (
            f"The sticky bit prevents it: {_chmod('+t', path)}" if known else "It should belong to root or to you"
        )
        return [
            f"{who} can put other directories in the place of jobs below {path} on {socket.gethostname()} "
            f"({_described(found)}), and so change what a waiting job runs. {cure}."
        ]
    advice = "Others could put other directories in the place of jobs. Choose a prefix in a directory of your own"
    if not known:
        raise _not_ours(path, found, _not_of_ours(), f"{advice}.")
    why = "can be written by others and has no sticky bit"
    raise _not_ours(path, found, why, f"{advice}, or close this one: {_how_to_close(path)}.")


def _how_to_close(path: str) -> str:
    return f"{_chmod('go-w', path)}, or {_chmod('3770', path)} if a group shares it on purpose"


def _chmod(mode: str, path: str) -> str:
    return f"chmod {mode} {shlex.quote(path)}"


def _not_of_ours() -> str:
    own = _login(os.geteuid())
    return "does not belong to root" if os.geteuid() == 0 else f"belongs neither to {own} nor to root"


def _is_closed_directory(found: os.stat_result) -> bool:
    """Whether nobody but its owner may write a directory, such as that of a project's leader."""
    return stat.S_ISDIR(found.st_mode) and not found.st_mode & _OTHERS


def _is_of_a_group(found: os.stat_result) -> bool:
    """Whether a directory is a group's on purpose, by the setgid bit, and not everybody's."""
    shared = found.st_mode & stat.S_IWGRP and found.st_mode & stat.S_ISGID
    return bool(shared) and stat.S_ISDIR(found.st_mode) and not found.st_mode & stat.S_IWOTH


def _is_sticky(found: os.stat_result) -> bool:
    """Whether the sticky bit keeps a group, not everybody, from the entries of others."""
    return bool(found.st_mode & stat.S_ISVTX) and not found.st_mode & stat.S_IWOTH


def _is_loose(path: str, found: os.stat_result) -> bool:
    """Whether others can rename and replace what a directory holds. The bits of a link mean nothing."""
    if not stat.S_ISDIR(found.st_mode) or found.st_mode & stat.S_ISVTX:
        return False
    return bool(found.st_mode & _OTHERS) and not _is_private(path, found)


def _is_private(path: str, found: os.stat_result) -> bool:
    """Whether only this user's own group may write: many systems give each user one of the same name."""
    import grp

    if found.st_mode & stat.S_IWOTH or found.st_uid != os.geteuid() or _has_acl(path):
        return False
    try:
        group = grp.getgrgid(found.st_gid)
    except KeyError:
        return False
    return group.gr_name == _login(found.st_uid) and set(group.gr_mem) <= {group.gr_name}


def _has_acl(path: str) -> bool:
    """Whether a POSIX ACL may let others write for whom the mode shows only its mask."""
    try:
        return bool(os.getxattr(path, "system.posix_acl_access"))
    except (AttributeError, OSError) as err:  # macOS has no such call
        return isinstance(err, OSError) and err.errno not in (errno.ENODATA, errno.ENOTSUP)


def _is_unmapped_root(found: os.stat_result) -> bool:
    """Whether this is the machine's root's, in a container that has no number for it and shows nobody instead."""
    try:
        with open("/proc/self/uid_map") as mapped, open("/proc/sys/kernel/overflowuid") as overflow:
            whole = mapped.read().split() == ["0", "0", "4294967295"]
            return not whole and found.st_uid == int(overflow.read())
    except (OSError, ValueError):
        return False


def _way_to(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield every directory and link on the way to a path, from the root on, and the path; up to what is missing.

    Links above the path are followed as the system follows them; the path itself is yielded as it is.
    """
    seen, done, left = 0, os.sep, path.split(os.sep)[:0:-1]
    yield done, os.lstat(done)
    while left:
        name = left.pop()
        if name in ("", "."):
            continue
        if name == "..":
            done = os.path.dirname(done)
            continue
        step = os.path.join(done, name)
        last = not left
        try:
            found = os.lstat(step)
        except (FileNotFoundError, NotADirectoryError):
            return
        yield path if last else step, found
        if stat.S_ISLNK(found.st_mode) and not last:
            seen += 1
            if seen > LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            target = os.readlink(step)
            left += target.split(os.sep)[::-1]
            done = os.sep if target.startswith(os.sep) else done
        else:
            done = step
