"""Every error the package raises on purpose, so that callers can catch one base class."""


class SpecPlugError(Exception):
    """Base class of all errors raised by hf_specplug."""


class OptionError(SpecPlugError, ValueError):
    """An option has a value that cannot be used; the message says which values can."""


class ModelError(SpecPlugError, OSError):
    """A model cannot be loaded by its name; the message says why."""


class DraftError(SpecPlugError, ValueError):
    """A drafter broke its contract. The drafter is dropped; `generate` never raises this."""


class StateError(SpecPlugError, ValueError):
    """A saved drafter state does not fit the drafter, the model or this version."""


class RecordingError(SpecPlugError, ValueError):
    """A recording cannot be read, made or replayed; the message says why."""


class StoreError(SpecPlugError, ValueError):
    """A datastore cannot be read, built or used with this model; the message says why."""


class CorpusError(SpecPlugError, ValueError):
    """A file of a corpus cannot be read; the message names it, and the line."""


class PlotError(SpecPlugError, ValueError):
    """There is nothing to draw, or nothing to draw it with; the message says why."""
