"""What people are told while a command runs: lines that stay, and on a terminal one that is rewritten."""

from typing import TextIO


class Lines:
    """Lines on `stream`, which is usually stderr."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._on_terminal = stream, stream.isatty()

    def line(self, text: str) -> None:
        """Tell a line that stays."""
        print(("\r\033[K" if self._on_terminal else "") + text, file=self._stream, flush=True)

    def rewrite(self, text: str) -> None:
        """Replace the line that is rewritten, on a terminal; elsewhere nothing is told."""
        if self._on_terminal:
            print(f"\r\033[K{text}", end="", file=self._stream, flush=True)
