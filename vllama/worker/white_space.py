"""White space around thinking, text and calls, which `/api` removes and vLLM's own routes would send (contract §2.5).

Models write blank lines after thinking and before calls. Ollama's clients never see these: they would show an empty
message before a call, and keep the blanks in their history.
"""

from __future__ import annotations


class _Text:
    """The text up to the next call; its blanks are held until it is known what follows them."""

    def __init__(self, *, drops_leading: bool) -> None:
        self._drops_leading = drops_leading
        self._held: list[str] = []
        self.has_begun = False

    def feed(self, piece: str) -> str:
        """Return what is certain to belong to the text."""
        if self.has_begun and not self._held and not piece[-1:].isspace():
            return piece
        body = piece.rstrip()
        if not body:
            if self.has_begun or not self._drops_leading:
                self._held.append(piece)
            return ""
        said = "".join((*self._held, body))
        if self._drops_leading and not self.has_begun:
            said = said.lstrip()
        self.has_begun = True
        self._held = [piece[len(body) :]] if len(body) < len(piece) else []
        return said

    def release(self) -> str:
        """Return the blanks that were held, and hold them no longer."""
        if not self._held:
            return ""
        held, self._held = "".join(self._held), []
        return held


class WhiteSpace:
    """Remover of one reply's white space, fed with its pieces in order; a whole reply is one piece.

    The text of a reply that has neither thinking nor calls stays as it is, and so does the end of thinking.
    """

    def __init__(self, *, may_call: bool) -> None:
        """Take whether the request offers tools: only then may blanks stand before a call."""
        self._may_call = may_call
        self._has_thought = False
        self._text = _Text(drops_leading=False)

    def feed(self, thinking: str | None, text: str, *, called: bool, finished: bool) -> tuple[str, str]:
        """Return the thinking and text that are certain to belong to the reply; calls come after both.

        `thinking` is "" if it is empty, None for a piece without thinking.
        """
        if thinking is not None and not self._text.has_begun:
            self._text = _Text(drops_leading=True)
        thought = thinking or ""
        if thought and not self._has_thought:
            thought = thought.lstrip()
            self._has_thought = bool(thought)
        said = self._text.feed(text) if text else ""
        if called:
            self._text = _Text(drops_leading=True)
        elif finished or (self._text.has_begun and not self._may_call):
            said += self._text.release()
        return thought, said
