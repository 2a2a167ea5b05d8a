"""Who owns a prefix, a job directory and its records: nothing that somebody else may have put there is used."""

from __future__ import annotations

import errno
import os
import pwd
import shlex
import socket
import stat
from typing import Iterator

#: The files that decide which script runs and how a job ended. Without job.json, the others are being written.
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
    """Somebody else owns something, or can replace it; the text is a whole sentence."""


def _trusted(found: os.stat_result) -> bool:
    return found.st_uid in (0, os.geteuid())


def _not_ours(path: str, found: os.stat_result, why: str, advice: str) -> NotOurs:
    return NotOurs(f"{path} on {socket.gethostname()} {why} ({_described(found)}). {advice}")


def _described(found: os.stat_result) -> str:
    """Owner, group and mode, for a message."""
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
    """Refuse a path that is not ours, or not of this kind: `stat.S_IFDIR`, `S_IFREG` (a plain file) or `S_IFLNK`.

    Raises:
        NotOurs: It belongs neither to this user nor to root, or is a link, or of another kind.
    """
    advice = "Nothing in it was used. Find out who put it there, then move it away or choose another prefix."
    if not _trusted(found):
        if os.geteuid() == 0:
            advice += " Or run the worker or endpoint as its owner."
        if _login(found.st_uid) == "nobody":
            advice += " Network file systems show nobody as the owner if they do not know or trust the real one."
        raise _not_ours(path, found, _not_of_ours(), advice)
    if stat.S_ISLNK(found.st_mode) and kind != stat.S_IFLNK:
        raise _not_ours(path, found, "is a link, and links are not followed here", advice)
    if stat.S_IFMT(found.st_mode) != kind:
        what = "directory" if kind == stat.S_IFDIR else "plain file"
        raise _not_ours(path, found, f"is not a {what}", advice)


def _check_closed(path: str, found: os.stat_result) -> None:
    """Refuse a path that somebody else may write.

    With a POSIX ACL the group bits of the mode are the mask of the ACL, so they also reveal write access by ACL.

    Raises:
        NotOurs: The group or everybody may write it.
    """
    if found.st_mode & _OTHERS:
        who = "everybody" if found.st_mode & stat.S_IWOTH else f"the group {_group(found.st_gid)}"
        advice = f"Check that nobody has changed it, then remove the write permission: {_chmod('go-w', path)}."
        raise _not_ours(path, found, f"is writable by {who}", advice)


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

    Nobody but root and this user may be able to replace a job directory: these two own every step, and where
    others may write, the sticky bit protects the entries of each owner. Two exceptions are used with a warning
    that others could do so: a directory shared by a group on purpose (setgid, as in mode 2770), and a directory
    above the prefix that has another owner. The prefix itself must not be a link, nor be writable by everybody,
    sticky or not.

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
                raise _not_ours(path, found, "is writable by others", f"Close it: {_how_to_close(path)}.")
        warnings += _check_step(path, found)
    return warnings


def _check_above(path: str) -> None:
    """Check every directory and link on the way to a path, but not the path itself.

    Raises:
        NotOurs: Somebody else could replace it.
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
            f"The sticky bit prevents that: {_chmod('+t', path)}"
            if known
            else "It should belong to root or to you"
        )
        return [
            f"{who} can replace the directories of jobs below {path} on {socket.gethostname()} "
            f"({_described(found)}), and so change what a waiting job runs. {cure}."
        ]
    advice = "Others could replace the directories of jobs. Choose a prefix in a directory of your own"
    if not known:
        raise _not_ours(path, found, _not_of_ours(), f"{advice}.")
    why = "is writable by others and has no sticky bit"
    raise _not_ours(path, found, why, f"{advice}, or close this one: {_how_to_close(path)}.")


def _how_to_close(path: str) -> str:
    return f"{_chmod('go-w', path)}, or {_chmod('3770', path)} if a group shares it on purpose"


def _chmod(mode: str, path: str) -> str:
    return f"chmod {mode} {shlex.quote(path)}"


def _not_of_ours() -> str:
    own = _login(os.geteuid())
    return "does not belong to root" if os.geteuid() == 0 else f"belongs neither to {own} nor to root"


def _is_closed_directory(found: os.stat_result) -> bool:
    """Whether only its owner may write to a directory, such as that of a project's leader."""
    return stat.S_ISDIR(found.st_mode) and not found.st_mode & _OTHERS


def _is_of_a_group(found: os.stat_result) -> bool:
    """Whether a directory is shared by a group on purpose (setgid), and not writable by everybody."""
    shared = found.st_mode & stat.S_IWGRP and found.st_mode & stat.S_ISGID
    return bool(shared) and stat.S_ISDIR(found.st_mode) and not found.st_mode & stat.S_IWOTH


def _is_sticky(found: os.stat_result) -> bool:
    """Whether a directory has the sticky bit and is not writable by everybody."""
    return bool(found.st_mode & stat.S_ISVTX) and not found.st_mode & stat.S_IWOTH


def _is_loose(path: str, found: os.stat_result) -> bool:
    """Whether others can rename and replace entries of a directory. The mode of a link means nothing."""
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
    """Whether the owner is the machine's root, seen from a container that shows it as nobody."""
    try:
        with open("/proc/self/uid_map") as mapped, open("/proc/sys/kernel/overflowuid") as overflow:
            whole = mapped.read().split() == ["0", "0", "4294967295"]
            return not whole and found.st_uid == int(overflow.read())
    except (OSError, ValueError):
        return False


def _way_to(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield every directory and link on the way to a path, from / on, then the path; stop where one is missing.

    Links above the path are followed as the system follows them; the path itself is not.
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
