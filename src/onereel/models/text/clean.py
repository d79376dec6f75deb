"""Caption cleaning, exactly as MAGI-1's text encoder saw captions in training.

It is the cleaner of DeepFloyd-IF's captions: a list of substitutions, applied in order. Users
should know: upper case is lost, Chinese characters vanish, and words such as `R2D2`, `f/1.8` or
file names are changed or removed. `clean_prompt` applies the list twice, as the model expects.
"""

from __future__ import annotations

import html
import re
import urllib.parse
from collections.abc import Callable

import ftfy
from bs4 import BeautifulSoup
from bs4.exceptions import ParserRejectedMarkup

from onereel.core.errors import ConfigError

Step = Callable[[str], str]

_FILE_TYPES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
_HOST_ENDS = "com|co|ru|net|org|edu|gov|it"
_DASHES = (
    "\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40"
    "\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d"
)
# Strokes, phonetic extensions, enclosed letters, compatibility forms, ideographs and hexagrams.
_CJK_BLOCKS = (
    "\u31c0-\u31ef\u31f0-\u31ff\u3200-\u32ff\u3300-\u33ff\u3400-\u4dbf\u4dc0-\u4dff\u4e00-\u9fff"
)
CHINESE = re.compile(f"[{_CJK_BLOCKS}]+")
_WORD_JOINERS = re.compile(r"[-_]")


def _sub(pattern: str, replacement: str = "") -> Step:
    compiled = re.compile(pattern)
    return lambda text: compiled.sub(replacement, text)


def _url(scheme: str) -> Step:
    """Remove addresses that begin with the scheme, or whose host has one of the known endings."""
    return _sub(
        rf"\b(?:{scheme}:(?:/{{1,3}}|[a-zA-Z0-9%])"
        rf"|[a-zA-Z0-9.\-]+[.](?:{_HOST_ENDS})[\w/\-]*\b/?(?!@))"
    )


def _normalise_input(text: str) -> str:
    """Undo URL quoting and case; `<person>` is a placeholder of the training captions, not HTML."""
    text = urllib.parse.unquote_plus(text).strip().lower()
    return text.replace("<person>", "person")


def _html_to_text(text: str) -> str:
    """Keep the text of HTML."""
    try:
        # The leading tag changes no text; it keeps the parser from warning about URL-like input.
        return BeautifulSoup(f"<p>{text}", features="html.parser").text
    except ParserRejectedMarkup as error:
        raise ConfigError(
            "prompt",
            expected="text, or HTML that can be read",
            got=text[:80],
            hint="remove '<!['",
        ) from error


def _split_long_compounds(text: str) -> str:
    """Turn `this-is-my-cute-cat_pic` into words: more than three joiners mean a slug."""
    if len(_WORD_JOINERS.findall(text)) > 3:
        return _WORD_JOINERS.sub(" ", text)
    return text


def _repair_unicode(text: str) -> str:
    """Mend wrongly decoded text and resolve entities, which may be escaped twice."""
    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


_STEPS: tuple[Step, ...] = (
    # 1 to 3: quoting, addresses, HTML
    _normalise_input,
    _url("https?"),
    _url("www"),
    _html_to_text,
    # 4 to 7: nicknames, Chinese, dashes, quotes
    _sub(r"@[\w\d]+\b"),
    _sub(CHINESE.pattern),
    _sub(f"[{_DASHES}]+", "-"),
    _sub("[`´«»“”¨]", '"'),
    _sub("[‘’]", "'"),
    _sub("&quot;?"),
    _sub("&amp"),
    # 8: addresses of machines, times at the end, written-out line breaks
    _sub(r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),
    _sub(r"\d:\d\d\s+$"),
    _sub(r"\\n", " "),
    # 9: numbers that name things, and file names
    _sub(r"#\d{1,3}\b"),
    _sub(r"#\d{5,}\b"),
    _sub(r"\b\d{6,}\b"),
    # The look-behinds here and in step 11 change no match; they keep the search linear.
    _sub(rf"(?<!\S)\S+\.(?:{_FILE_TYPES})"),
    # 10 to 11: punctuation
    _sub(r"[\"']{2,}", '"'),
    _sub(r"\.{2,}", " "),
    _sub(r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+", " "),
    _sub(r"(?<!\s)\s+\.\s+", " "),
    # 12 to 13
    _split_long_compounds,
    _repair_unicode,
    # 14: codes such as jc6640, jc6640vc, 6640vc231
    _sub(r"\b[a-zA-Z]{1,3}\d{3,15}\b"),
    _sub(r"\b[a-zA-Z]+\d+[a-zA-Z]+\b"),
    _sub(r"\b\d+[a-zA-Z]+\d+\b"),
    # 15: phrases of web shops
    _sub(r"(?:worldwide\s+)?(?:free\s+)?shipping"),
    _sub(r"(?:free\s)?download(?:\sfree)?"),
    _sub(r"\bclick\b\s(?:for|on)\s\w+"),
    _sub(rf"\b(?:{_FILE_TYPES})(?:\simages?)?"),
    _sub(r"\bpage\s+\d+\b"),
    # 16: codes such as j2d1a2a, and sizes; the second class holds x, Cyrillic ha and the times sign
    _sub(r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    _sub("\\b\\d+\\.?\\d*[x\u0445\u00d7]\\d+\\.?\\d*\\b"),
    # 17: spacing
    _sub(r"\b\s+:\s+", ": "),
    _sub(r"(\D[,./])\b", r"\1 "),
    _sub(r"\s+", " "),
    # 18: the ends; a space left at an end protects the sign before it in this pass
    _sub(r"^[\"']([\w\W]+)[\"']$", r"\1"),
    _sub(r"^['_,\-:;]"),
    _sub(r"['_,\-:+]$"),
    _sub(r"^\.\S+$"),
    str.strip,
)


def clean_caption(text: str) -> str:
    """Apply the list of cleaning steps once.

    Args:
        text: any text.

    Returns:
        The cleaned text, possibly empty.

    Raises:
        ConfigError: the text holds markup that cannot be parsed.

    Source: spec magi1-vae-t5-io 6.1 (the caption cleaner of DeepFloyd-IF).
    """
    for step in _STEPS:
        text = step(text)
    return text


def clean_prompt(text: str) -> str:
    """Clean a prompt as the text encoder expects it: the list of steps, twice.

    Args:
        text: any text.

    Returns:
        The cleaned text, possibly empty.

    Raises:
        ConfigError: the text holds markup that cannot be parsed.

    Source: spec magi1-vae-t5-io 6.
    """
    return clean_caption(clean_caption(text))
