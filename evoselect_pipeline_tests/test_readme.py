"""Every command that the README shows exists: its make targets, subcommands, options and files."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from evoselect_pipeline.cli import app

REPOSITORY = Path(__file__).parents[1]
README = REPOSITORY / "README.md"
CLI = typer.main.get_command(app)
FENCE = re.compile(r"^```(?:bash|sh|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# What a README may tell people to run besides the project's own commands.
OTHER_PROGRAMS = {
    "git",
    "cd",
    "docker",
    "pip",
    "transformers",  # comes with the library
    "python",
    "python3",
    "source",
    "export",
    "cp",
    "cat",
    "ray",
    "vllm",
}


def commands(text: str) -> list[list[str]]:
    """The commands of all fenced shell blocks, split into words; comments and prompts are cut."""
    found = []
    for block in FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|\||[|;]", line.removeprefix("$ ")):
                words = shlex.split(part, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words.pop(0)
                if words:
                    found.append(words)
    return found


def problems(text: str, folder: Path = REPOSITORY) -> list[str]:
    """What is wrong with the commands of a README."""
    return [problem for words in commands(text) for problem in _problems(words, folder)]


def _problems(words: list[str], folder: Path) -> Iterator[str]:
    program, arguments = Path(words[0]).name, words[1:]
    shipped = [word for word in arguments if word.startswith("docs/")]
    yield from (f"{word}: no such file" for word in shipped if not (folder / word).is_file())
    if program == "make":
        targets = set(re.findall(r"^([a-z][a-z-]*):", (folder / "Makefile").read_text(), re.M))
        wanted = [word for word in arguments if "=" not in word and not word.startswith("-")]
        yield from (f"make {word}: no such target" for word in wanted if word not in targets)
    elif program == "evoselect":
        yield from _evoselect_problems(arguments)
    elif words[0].startswith(("./", ".ci/")):
        if not (folder / words[0]).is_file():
            yield f"{words[0]}: no such file"
    elif program not in OTHER_PROGRAMS:
        yield f"{program}: neither this project's command nor a usual one"


def _evoselect_problems(arguments: list[str]) -> Iterator[str]:
    if not arguments or arguments[0] in ("-h", "--help"):
        return
    command, words, name = CLI, list(arguments), "evoselect"
    while hasattr(command, "commands"):  # a group, as `bench` is
        wanted = words.pop(0) if words else ""
        name = f"{name} {wanted}"
        command = command.commands.get(wanted)
        if command is None:
            yield f"{name}: no such command"
            return
    known = _options(command)
    for word in words:
        if word.startswith("-") and word.split("=")[0] not in known:
            yield f"{name} {word}: no such option"


def _options(command: Any) -> set[str]:
    named = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
    return named | {"-h", "--help"}


@pytest.mark.parametrize("page", [README, *sorted((REPOSITORY / "docs").glob("*.md"))])
def test_every_command_of_the_readme_and_the_pages_exists(page):
    assert not problems(page.read_text(encoding="utf-8"))


def test_the_readme_names_the_two_commands_that_matter():
    text = README.read_text(encoding="utf-8")
    if not text.strip():
        pytest.skip("README.md is empty")
    assert {"run", "test"} <= {words[1] for words in commands(text) if words[0] == "make"}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("make fly", "make fly"),
        ("evoselect fly", "evoselect fly"),
        ("evoselect run --fly", "--fly"),
        ("evoselect bench fly", "bench fly"),
        ("evoselect bench adaptation --fly", "--fly"),
        ("cd x && evoselect status --rounds 3", "--rounds"),
        (".ci/fly", ".ci/fly"),
        ("evoselect check --config docs/fly.yaml", "docs/fly.yaml"),
        ("EVOSELECT_HOME=/data flyctl deploy", "flyctl"),
    ],
)
def test_an_unknown_command_is_found(line, problem):
    good = "make run  # or fly\n$ evoselect run --rounds 1 \\\n  --set train.steps=5\n.ci/run\n"
    assert not problems(f"```bash\n{good}```\n```yaml\nfly: 1\n```\n")
    [found] = problems(f"text\n```bash\n{good}{line}\n```\n")
    assert problem in found
