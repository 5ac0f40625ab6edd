"""A reader for the almost-JSON of language models, which also reads text that is still arriving. Pure.

No installed library reads all of it (jiter and pydantic-core take a cut-off end, but no fences, prose, single quotes,
trailing or missing commas, comments, bare words or Chinese punctuation), so this one is a single pass over the text:

* prose and fences outside of braces are passed over, so is a leading ``<think>…</think>``;
* valid JSON is read as `json.loads` reads it, but of a repeated name the first value counts;
* a text that ends early yields what was complete; a string cut by the end is a :class:`CutText`.

It reads from left to right and never takes back a value: the values of a text's beginning are those of the whole text.
That is what lets a level be used while the rest of the answer is still on its way.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

#: Deeper nesting is no answer but garbage; the rest of such a text is not read.
MAX_DEPTH = 32

_OPENERS = {"{": "object", "｛": "object", "[": "list", "［": "list", "【": "list"}
_CLOSERS = {"}": "object", "｝": "object", "]": "list", "］": "list", "】": "list"}
_COMMAS = ",，、;；"
_COLONS = ":：="
_QUOTES = {'"': '"', "'": "'", "“": '”“"', "”": '”"', "‘": "’‘'", "’": "’'", "「": "」", "『": "』", "`": "`"}
_AFTER_STRING = frozenset(_COMMAS + _COLONS + "".join(_CLOSERS) + "/#")

_BRACE = re.compile(r"[{｛]")
_SPACE = re.compile(r"(?:\s|//[^\n]*|/\*.*?(?:\*/|\Z)|#[^\n]*)+", re.DOTALL)
_WHITE = re.compile(r"\s*")
_ONE_SPACE = re.compile(r"\s")
_COMMENT = re.compile(r"//|/\*|#")
_BARE_KEY = re.compile(r"[^:：=,，{}｛｝\[\]\"“”\n]+")
_BARE_VALUE = re.compile(r"[^,，;；{}｛｝\[\]［］【】\"“”\n]+")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_ESCAPE = re.compile(
    r"\\(?:u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|(.))", re.DOTALL
)
_SHORT_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_WORDS: dict[str, Any] = {
    "true": True, "false": False, "null": None, "None": None, "undefined": None,
    "nan": math.nan, "infinity": math.inf, "-infinity": -math.inf, "inf": math.inf, "-inf": -math.inf,
}  # fmt: skip


class CutText(str):
    """A string that the end of the text cut off."""

    __slots__ = ()


@dataclass
class _Container:
    """An object or a list that is being read. ``key``: the name that waits for its value; ``None`` before one."""

    value: dict[str, Any] | list[Any]
    key: str | None = None
    colon: bool = False


#: Called for each named scalar in the text's order: the object it belongs to, its name, its value.
Listener = Callable[[dict[str, Any], str, Any], None]


@dataclass
class _Reader:
    text: str
    normal: Callable[[str], str]
    listener: Listener | None
    objects: list[dict[str, Any]] = field(default_factory=list)
    stack: list[_Container] = field(default_factory=list)
    at: int = 0

    def read(self) -> None:
        self._skip_thoughts()
        while self.at < len(self.text) and len(self.stack) < MAX_DEPTH:
            if not self.stack:
                brace = _BRACE.search(self.text, self.at)
                if brace is None:
                    return
                self.at = brace.end()
                self._open({})
            else:
                self._step()

    def _skip_thoughts(self) -> None:
        start = _WHITE.match(self.text, 0)
        if start is not None and self.text.startswith("<think>", start.end()):
            end = self.text.find("</think>", start.end())
            self.at = len(self.text) if end < 0 else end + len("</think>")

    def _step(self) -> None:
        if space := _SPACE.match(self.text, self.at):
            self.at = space.end()
            return
        top, character = self.stack[-1], self.text[self.at]
        self.at += 1
        if character in _OPENERS:
            self._open({} if _OPENERS[character] == "object" else [])
        elif character in _CLOSERS:
            self._close(_CLOSERS[character])
        elif character in _COMMAS:
            top.key, top.colon = None, False
        elif character in _COLONS:
            top.colon = top.key is not None
        elif character in _QUOTES:
            self._string(top, character)
        else:
            self.at -= 1
            self._bare(top)

    def _open(self, value: dict[str, Any] | list[Any]) -> None:
        if self.stack:
            self._put(self.stack[-1], value)
        if isinstance(value, dict):
            self.objects.append(value)
        self.stack.append(_Container(value))

    def _close(self, kind: str) -> None:
        wanted = dict if kind == "object" else list
        if any(isinstance(container.value, wanted) for container in self.stack):
            while not isinstance(self.stack.pop().value, wanted):
                pass

    def _string(self, top: _Container, quote: str) -> None:
        start, search = self.at, self.at
        space = _ONE_SPACE.search(self.text, start)
        first_space = space.start() if space else len(self.text)
        while (end := _string_end(self.text, search, _QUOTES[quote])) >= 0:
            # models forget to escape quotes inside of sentences, so what follows decides; a single word ends at its
            # quote and need not wait for what follows
            closes = self._ends_word(end) if first_space > end else self._ends_value(end + 1)
            if closes:
                self.at = end + 1
                self._take(top, _unescaped(self.text[start:end]))
                return
            if closes is None:
                break
            search = end + 1
        self.at = len(self.text)
        self._take(top, CutText(_unescaped(self.text[start : end if end >= 0 else None])))

    def _ends_word(self, end: int) -> bool | None:
        """Whether the quote at `end` closes a string without space; an apostrophe (it's) does not."""
        if self.text[end] not in "'’":
            return True
        return None if end + 1 == len(self.text) else not self.text[end + 1].isalnum()

    def _ends_value(self, at: int) -> bool | None:
        """Whether a value may end before `at`; None while the text that would say so is not there."""
        space = _WHITE.match(self.text, at)
        following = space.end() if space else at
        if following >= len(self.text):
            return None
        # a forgotten comma at the end of a line is common
        on_next_line = "\n" in self.text[at:following] and self.text[following] in _QUOTES
        return on_next_line or self.text[following] in _AFTER_STRING

    def _bare(self, top: _Container) -> None:
        reading_key = isinstance(top.value, dict) and not top.colon
        match = (_BARE_KEY if reading_key else _BARE_VALUE).match(self.text, self.at)
        if match is None:
            self.at += 1  # a character that means nothing here
            return
        self.at = match.end()
        word = _COMMENT.split(match.group())[0].strip()
        if self.at < len(self.text):  # the end of the text may have cut it
            self._take(top, word if reading_key else _scalar(word))

    def _take(self, top: _Container, value: Any) -> None:
        if isinstance(top.value, dict) and not top.colon:
            # a name; after a value without a comma too, since models forget commas
            top.key = None if isinstance(value, CutText) else self.normal(str(value))
        else:
            self._put(top, value)

    def _put(self, top: _Container, value: Any) -> None:
        if isinstance(top.value, list):
            top.value.append(value)
            return
        key, colon = top.key, top.colon
        top.key, top.colon = None, False
        if key is None or not colon or key in top.value:
            return
        top.value[key] = value
        if self.listener is not None and not isinstance(value, dict | list | CutText):
            self.listener(top.value, key, value)


def read_objects(
    text: str, *, normal: Callable[[str], str] = lambda name: name, listener: Listener | None = None
) -> list[dict[str, Any]]:
    """All objects in the text, outer before inner, in the order of their opening braces.

    Args:
        text: of any kind and size; the time is linear in its length.
        normal: brings a name to the form it is kept under.
        listener: told of each scalar that has a name, in the text's order, cut ones excepted.
    """
    reader = _Reader(text, normal, listener)
    reader.read()
    return reader.objects


def _string_end(text: str, start: int, closers: str) -> int:
    """Where the next unescaped closing quote is; -1: nowhere."""
    for match in re.compile(rf"\\.|[{re.escape(closers)}]", re.DOTALL).finditer(text, start):
        if match.group()[0] != "\\":
            return match.start()
    return -1


def _unescaped(content: str) -> str:
    return _ESCAPE.sub(_character, content)


def _character(match: re.Match[str]) -> str:
    high, low, single, short = match.groups()
    if high:
        return chr(0x10000 + ((int(high, 16) - 0xD800) << 10) + (int(low, 16) - 0xDC00))
    if single:
        return chr(int(single, 16))
    return _SHORT_ESCAPES.get(short, short)


def _scalar(word: str) -> Any:
    for spelling in (word, word.casefold()):  # None is Python's null, none is a word
        if spelling in _WORDS:
            return _WORDS[spelling]
    if _NUMBER.fullmatch(word):
        if re.fullmatch(r"[+-]?\d{1,18}", word):
            return int(word)
        return float(word)
    return word
