"""The errors that the package raises on purpose. Callers can catch them by one base class."""


class SpecPlugError(Exception):
    """Base class of all errors raised by hf_specplug."""


class OptionError(SpecPlugError, ValueError):
    """An option has an invalid value; the message says which values are valid."""


class ModelError(SpecPlugError, OSError):
    """A model cannot be loaded by its name; the message gives the reason."""


class DraftError(SpecPlugError, ValueError):
    """A drafter broke its contract. The drafter is dropped; `generate` never raises this."""


class StateError(SpecPlugError, ValueError):
    """A saved drafter state does not fit the drafter, the model or this version."""


class RecordingError(SpecPlugError, ValueError):
    """A recording cannot be read, made or replayed; the message gives the reason."""


class StoreError(SpecPlugError, ValueError):
    """A datastore cannot be read, built or used with this model; the message gives the reason."""


class CorpusError(SpecPlugError, ValueError):
    """A corpus file cannot be read; the message names the file and the line."""


class PlotError(SpecPlugError, ValueError):
    """A plot or trace has no data, or cannot be drawn or saved; the message gives the reason."""
