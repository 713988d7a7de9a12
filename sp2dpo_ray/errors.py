"""The tree of exceptions, and the exit code that each branch ends a command with.

    Sp2dpoError
    |-- ConfigError        2   the configuration or a flag is wrong
    |-- DataError          3   the data is wrong
    |   `-- ArtifactError      an artifact on disk is missing, incomplete or altered
    |-- Stopped            4   stopped and resumable: run the same command again
    |   `-- TeacherStopped     a teacher refuses us (authentication, too many errors)
    `-- TrainingError      5   training failed

A message says where (dotted key, file and line, pair id), which rule, which value, and what to do.
"""

from __future__ import annotations

import errno

# what a full disk and a full quota raise as OSError.errno
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Sp2dpoError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code = 1


class ConfigError(Sp2dpoError):
    """The configuration or a command line flag breaks a rule."""

    exit_code = 2


class DataError(Sp2dpoError):
    """The data set, or what teachers said of it, breaks a rule."""

    exit_code = 3


class ArtifactError(DataError):
    """An artifact in the run folder is missing, incomplete or altered."""


class Stopped(Sp2dpoError):
    """The stage stopped before its end and goes on when it is run again."""

    exit_code = 4


class WorkerLost(Stopped):
    """A node or a process of a training went, through no fault of the training's."""


class TeacherStopped(Stopped):
    """A teacher cannot be asked any further (authentication, too many errors)."""


class TrainingError(Sp2dpoError):
    """Training broke off, or produced what cannot be used."""

    exit_code = 5
