"""The one error that is shown to a person as it stands."""


class InputError(ValueError):
    """Bad input from a person. The message names the value, the limit and the remedy, in a sentence."""
