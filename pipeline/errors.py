"""The one exception that means: the user can mend this."""


class InputError(Exception):
    """Something the user gave cannot be used.

    The message names the file, camera and frame, says what was expected, what came and what to do next. The
    command line prints it without a traceback and exits with status 2.
    """


class NobodyFound(InputError):
    """Nobody is in the pictures: an answer, not a mistake. The command line exits with status 1."""
