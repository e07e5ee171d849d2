"""The exceptions that a user can cause, each with what to do about it.

HarnessError
├── UsageError        the command line or a call asks for something that cannot be
├── SuiteError        a suite file does not say what a suite must say
├── PluginError       a plugin is broken, or two plugins contradict each other
│   └── UnknownName   nobody registered this name
├── DataError         a data set is missing, or not what its card says
├── ModelError        a model breaks the contract of a Classifier
├── CheckpointError   weights are missing, altered or of another model
├── TrainingError     a recipe cannot go on
├── AttackError       an attack got or gave something that it must not
├── EntryError        an entry of the leaderboard is not what it says
├── StoreError        the run folder cannot be written, or holds something altered
└── WorkerError       a shard could not be done

Everything else that is raised is a bug.
"""

from __future__ import annotations


class HarnessError(Exception):
    """An expected failure: its message says where, what and the remedy."""


class UsageError(HarnessError):
    """The command line or a call asks for something that cannot be."""


class SuiteError(HarnessError):
    """A suite file does not say what a suite must say."""


class PluginError(HarnessError):
    """A plugin is broken, or two plugins contradict each other."""


class UnknownName(PluginError):  # noqa: N818 - reads better in a traceback than UnknownNameError
    """Nobody registered this name."""


class DataError(HarnessError):
    """A data set is missing, or not what its card says."""


class ModelError(HarnessError):
    """A model breaks the contract of a Classifier."""


class CheckpointError(HarnessError):
    """Weights are missing, altered or of another model."""


class TrainingError(HarnessError):
    """A recipe cannot go on."""


class AttackError(HarnessError):
    """An attack got or gave something that it must not."""


class EntryError(HarnessError):
    """An entry of the leaderboard is not what it says."""


class StoreError(HarnessError):
    """The run folder cannot be written, or holds something altered."""


class WorkerError(HarnessError):
    """A shard could not be done."""
