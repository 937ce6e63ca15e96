"""The documentation says what the code does: its keys, its messages, its reasons."""

import ast
import difflib
import re
import runpy
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.config_file import parse_config
from evoselect_pipeline.report.reasons import REASONS

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", *sorted(DOCS.glob("*.md"))]
REFERENCE = runpy.run_path(str(DOCS / "configuration.py"))
FENCE = re.compile(r"^[ ]*```yaml\n(.*?)^[ ]*```", re.MULTILINE | re.DOTALL)
ANY_FENCE = re.compile(r"^[ ]*```\w*\n(.*?)^[ ]*```", re.MULTILINE | re.DOTALL)
# In a block, what a reader has to fill in: capitals that no `=` follows and no `$` precedes.
PLACEHOLDER = re.compile(r"(?<![\w$./-])[A-Z][A-Z_]{2,}(?![\w=./-])")
SPAN = re.compile(r"`([^`\n]+)`")
FIRST_CELL = re.compile(r"^\| `([^`]+)` \|", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
# A task and a generator of one world belong together: what completes a fragment with one of them.
OWN_TASK = {"kind": "files", "targets": "a.jsonl", "validation": "b.jsonl", "test": "c.jsonl"}
OWN_FILES = {"kind": "files", "pattern": "{round}.jsonl"}
LEAST_QUOTED = 10  # characters of a message; fewer could be anything
VARIES = "\0"  # in a message of the source, for what is filled in


def yaml_blocks(text: str) -> list[Any]:
    return [yaml.safe_load(textwrap.dedent(body)) for body in FENCE.findall(text)]


def line_settings(block: Any) -> dict[str, Any] | None:
    """A block's settings if it is a line's configuration or a fragment of one.

    It is one if a top-level key is known, or nearly so: a typing error must not hide it.
    """
    if not isinstance(block, dict):
        return None
    settings = (block.get("attributes") or {}) if "type" in block else block
    known = list(LineConfig.model_fields)
    is_one = any(difflib.get_close_matches(str(key), known, n=1, cutoff=0.8) for key in settings)
    return settings if is_one else None


def validate(settings: dict[str, Any], where: str) -> None:
    """Refuse what `LineConfig` refuses, apart from the other half of a task and its generator."""
    halves = {"task": OWN_TASK, "generator": OWN_FILES}
    kinds = {settings.get(key, {}).get("kind", "playground") for key in halves}
    parse_config((halves if kinds != {"playground"} else {}) | settings, where)


@cache
def messages() -> tuple[str, ...]:
    """Every text in the package's source, with `VARIES` for what is filled in."""
    files = sorted((REPOSITORY / "evoselect_pipeline").rglob("*.py"))
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    return tuple(text for tree in trees for text in texts_in(tree))


def texts_in(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.JoinedStr):
        parts = node.values
        yield "".join(str(p.value) if isinstance(p, ast.Constant) else VARIES for p in parts)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    else:
        for child in ast.iter_child_nodes(node):
            yield from texts_in(child)


def occurs(quoted: str) -> bool:
    """Whether a text of the source begins as quoted, `...` standing for anything."""
    beginning = re.compile(".*".join(map(re.escape, quoted.split("..."))), re.DOTALL)
    return any(beginning.match(text) for text in messages())


def anchors(page: Path) -> set[str]:
    """Where GitHub puts the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_reference_of_keys_is_what_the_schema_says():
    written = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert written == REFERENCE["page"](), "run `python docs/configuration.py`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_configuration_on_a_page_is_accepted(page):
    for number, block in enumerate(yaml_blocks(page.read_text(encoding="utf-8"))):
        if settings := line_settings(block):
            validate(settings, f"{page.name}, block {number}")


@pytest.mark.parametrize(
    ("block", "is_refused"),
    [
        ("engine: ray", False),
        ("generator: {kind: server, base_url: 'http://127.0.0.1/v1', model: m}", False),
        ("services: {web: {image: x}}", False),
        ("enginee: ray", True),
        ("train: {stesp: 1}", True),
        ("type: x\nattributes: {chain: {pacience: 1}}", True),
    ],
)
def test_a_wrong_key_in_a_block_is_found(block, is_refused):
    [found] = yaml_blocks(f"text\n\n  ```yaml\n{textwrap.indent(block, '  ')}\n  ```\n")
    settings = line_settings(found)
    if is_refused:
        with pytest.raises(ValueError, match="unknown key"):
            validate(settings or {}, "block")
    elif settings:
        validate(settings, "block")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_key_that_a_page_names_exists(page):
    known = REFERENCE["all_keys"]()
    sections = {key.partition(".")[0] for key in known if "." in key}
    key = re.compile(rf"(?:--set )?((?:{'|'.join(sections)})(?:\.[a-z_0-9]+)+)(?:$|[=: ])")
    spans = SPAN.findall(page.read_text(encoding="utf-8"))
    named = {found[1] for span in spans if (found := key.match(span))}
    assert not named - known - {"model.safetensors"}  # which is a file


def test_every_message_of_the_troubleshooting_page_is_one_of_the_source():
    quoted = FIRST_CELL.findall((DOCS / "troubleshooting.md").read_text(encoding="utf-8"))
    assert len(quoted) > 50
    assert not [text for text in quoted if not occurs(text)]
    vague = [text for text in quoted if len(text.replace("...", "")) < LEAST_QUOTED]
    assert not vague, "these could be anything"


@pytest.mark.parametrize(
    ("quoted", "is_there"),
    [
        ("...: is not valid YAML: ...", True),
        ("...: is not valid YAMLS: ...", False),
        ("is not valid YAML", False),
        ("give --config or --line, not both", True),
    ],
)
def test_a_message_that_nobody_says_is_found(quoted, is_there):
    assert occurs(quoted) == is_there


def test_the_page_on_selection_tells_every_reason_in_order():
    page = (DOCS / "how-selection-works.md").read_text(encoding="utf-8")
    told = FIRST_CELL.findall(page.partition("| stage |")[2].partition("\n\n")[0])
    assert told == list(REASONS)


def unexplained(page: str) -> set[str]:
    """Placeholders of a page's blocks that the text around the blocks does not name."""
    text = ANY_FENCE.sub("", page)
    found = {word for block in ANY_FENCE.findall(page) for word in PLACEHOLDER.findall(block)}
    return {word for word in found if f"`{word}`" not in text}


@pytest.mark.parametrize("page", [PAGES[0], DOCS / "quickstart.md"], ids=lambda page: page.name)
def test_every_placeholder_is_said_to_be_one(page):
    assert not unexplained(page.read_text(encoding="utf-8"))


def test_a_placeholder_that_nobody_explains_is_found():
    block = "```yaml\nmodel: {name: NAME, revision: COMMIT}\n```\n"
    command = "```bash\nEVOSELECT_HOME=/data evoselect lineage ROW --home $HOME/x\n```\n"
    assert unexplained(f"{block}`NAME` is yours.\n{command}") == {"COMMIT", "ROW"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_between_pages_leads_somewhere(page):
    for address in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"https?:", address):
            continue
        path, _, anchor = address.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), address
        assert not anchor or anchor in anchors(target), address
