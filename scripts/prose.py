"""Check prose against the rules of scripts/prose.toml: Markdown, docstrings, help texts and commit titles.

usage: .venv/bin/python scripts/prose.py [FILE ...]
       .venv/bin/python scripts/prose.py --commit-message FILE

Without arguments everything is checked. Each line printed is `place: rule: text (suggestion)`; the exit status is 1
if there is any.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
RULES = ROOT / "scripts" / "prose.toml"


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern that prose of these kinds must not match."""

    name: str
    pattern: re.Pattern[str]
    suggestion: str
    kinds: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Passage:
    """A line of prose and where it stands."""

    place: str
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Titles:
    """The rules for commit titles."""

    base: str
    title_length: int
    not_verbs: list[str]
    verbs: list[str]


def load() -> tuple[list[Rule], Titles]:
    """Return the rules for prose and those for commit titles."""
    table = tomllib.loads(RULES.read_text(encoding="utf-8"))
    every = ("markdown", "docstring", "help")
    rules = [
        Rule(row["name"], re.compile(row["pattern"]), row["say"], tuple(row.get("in", every))) for row in table["rules"]
    ]
    return rules, Titles(**table["commits"])


def markdown(path: Path) -> Iterator[Passage]:
    """Yield the lines outside code, with inline code and link targets blanked."""
    code = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            code = not code
        elif not code:
            yield Passage(f"{_shown(path)}:{number}", "markdown", plain(line).lstrip("#-*> "))


def docstrings(path: Path) -> Iterator[Passage]:
    """Yield the lines of every docstring, also of those below assignments."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                for offset, line in enumerate(text.splitlines()):
                    kind = "docstring" if offset else "summary"
                    yield Passage(f"{_shown(path)}:{node.lineno + offset}", kind, plain(line.strip()))


def help_texts() -> Iterator[Passage]:
    """Yield the help of every command and option."""
    from vllama.cli.main import main

    def walk(command: click.Command, path: str) -> Iterator[Passage]:
        yield from (Passage(path, "help", plain(line.strip())) for line in (command.help or "").splitlines())
        for option in command.params:
            if isinstance(option, click.Option) and option.help:
                yield Passage(f"{path} {option.opts[0]}", "help", plain(option.help))
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                if child is not None:
                    yield from walk(child, f"{path} {name}")

    yield from walk(main, "vllama")


def plain(line: str) -> str:
    """Return the line without code, link targets and emphasis."""
    line = re.sub(r"``?[^`]*``?", "`code`", line)
    return re.sub(r"\]\([^)]*\)|\[|\]|\*\*", "", line)


def check(passages: Iterator[Passage], rules: list[Rule]) -> Iterator[str]:
    """Yield a line for each rule that a passage breaks."""
    for passage in passages:
        kind = "docstring" if passage.kind == "summary" else passage.kind
        for rule in rules:
            if kind in rule.kinds and (found := rule.pattern.search(passage.text)):
                yield f"{passage.place}: {rule.name}: {found[0].strip()!r} ({rule.suggestion})"
        words = re.findall(r"[\w'`./-]+", passage.text)
        if passage.kind == "summary" and len(words) < 3:
            yield f"{passage.place}: fragment: {passage.text!r} (a verb, or a noun phrase of more than two words)"


def check_title(title: str, rules: Titles) -> Iterator[str]:
    """Yield what is wrong with a commit title."""
    place = f"commit {title[:40].replace(':', '')!r}"
    if len(title) > rules.title_length:
        yield f"{place}: title-length: {len(title)} characters (maximum {rules.title_length})"
    if title.endswith("."):
        yield f"{place}: title-period: {title[-20:]!r} (no period at the end)"
    first = title.partition(" ")[0].lower().rstrip(",")
    inflected = first not in rules.verbs and re.search(r"(?:ed|ing|[^s]s|'s|:)$", first)
    if inflected or first in rules.not_verbs:
        yield f"{place}: title-imperative: {first!r} (begin with a verb in the imperative)"


def commits(base: str) -> list[str]:
    """Return the titles after the base; none where the history does not reach it."""
    command = ["git", "log", "--no-merges", "--format=%s", f"{base}..HEAD"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return result.stdout.splitlines() if result.returncode == 0 else []


def everything() -> list[Path]:
    """Return all files whose prose is checked."""
    folders = ROOT / "docs", ROOT / "vllama"
    pages = [
        *ROOT.glob("*.md"),
        *(page for folder in folders for page in folder.rglob("*.md")),
        ROOT / "bench/README.md",
    ]
    return [*sorted(pages), *sorted((ROOT / "vllama").rglob("*.py"))]


def _shown(path: Path) -> str:
    path = path.resolve()
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def main(arguments: list[str]) -> int:
    """Print what was found; return 1 if anything was."""
    rules, titles = load()
    if arguments[:1] == ["--commit-message"]:
        found = list(check_title(Path(arguments[1]).read_text(encoding="utf-8").partition("\n")[0], titles))
    else:
        paths = [Path(argument) for argument in arguments] or everything()
        found = []
        for path in paths:
            found += check(markdown(path) if path.suffix == ".md" else docstrings(path), rules)
        if not arguments:
            found += check(help_texts(), rules)
            for title in commits(titles.base):
                found += check_title(title, titles)
    sys.stdout.writelines(f"{line}\n" for line in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
