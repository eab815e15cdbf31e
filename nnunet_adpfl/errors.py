"""Errors that a user can mend: one clear sentence, shown without a traceback.

Every message names the argument or file at fault and says what to do.
"""

_LONGEST = 1_000  # characters: names in a damaged file may be of any length


class AdpflError(Exception):
    """Base of all errors meant for the user. ``str(error)`` is the one line that the command prints.

    Messages quote names from files. Whatever these hold, the message stays one line that a terminal shows as it is.
    """

    def __init__(self, message: str) -> None:
        line = "".join(character if character.isprintable() else " " for character in message)
        super().__init__(line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ...")


class InputError(AdpflError):
    """An argument, a file or a data set is not what it has to be."""


class DivergedError(AdpflError):
    """A network's output is not finite: its training went astray, usually by too large a learning rate."""


class PrivacyRefusedError(AdpflError):
    """Going on would make the privacy claim untrue (ledger damaged, plan edited, undeclared weights, ...)."""


class BudgetExhaustedError(AdpflError):
    """The next step would spend more than the target epsilon; everything reached so far is kept."""
