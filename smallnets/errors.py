"""The errors that a user sees as one or two lines instead of a traceback.

Every message is in the user's own spelling and says what was asked, what is allowed and what came.
"""


class UserError(Exception):
    """A mistake on the command line, in a config or in a call: the command exits with 2."""

    exit_code = 2


class RunError(UserError):
    """A run that was asked for correctly and cannot go on (damaged data, broken budget): exit 1."""

    exit_code = 1
