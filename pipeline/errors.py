"""The one exception that means: the user can mend this."""

from typing import Final

MAX_MESSAGE: Final = 2000
"""Characters of a message: a quotation from a damaged file may have millions."""


def shortened(text: str, most: int = MAX_MESSAGE) -> str:
    """Text of at most ``most`` characters: beginning and end of a longer one."""
    if len(text) <= most:
        return text
    kept = most - 5
    return f"{text[: kept - kept // 3]} ... {text[len(text) - kept // 3 :]}"


def short_reason(error: Exception) -> str:
    """Text of an error on one line, or its type where it has none."""
    return shortened(" ".join(str(error).split()) or type(error).__name__, 300)


class InputError(Exception):
    """Something the user gave cannot be used.

    The message names the file, camera and frame, says what was expected, what came and what to do next, in at
    most ``MAX_MESSAGE`` characters. The command line prints it without a traceback and exits with status 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(shortened(message))


class NobodyFound(InputError):
    """No person is in the pictures. The command line exits with status 1."""
