"""Errors that a user can mend: one clear sentence, shown without a traceback.

Every message names the argument or file at fault and says what to do.
"""


class AdpflError(Exception):
    """Base of all errors meant for the user. ``str(error)`` is the one line that the command prints."""


class InputError(AdpflError):
    """An argument, a file or a data set is not what it has to be."""


class PrivacyRefusedError(AdpflError):
    """Going on would make the privacy claim untrue (ledger damaged, plan edited, undeclared weights, ...)."""


class BudgetExhaustedError(AdpflError):
    """The next step would spend more than the target epsilon; everything reached so far is kept."""
