"""SECURITY.md names tests that exist, keys that exist and pages that exist."""

from pathlib import Path

from evoselect_pipeline_tests.test_docs import LINK, REFERENCE, REPOSITORY, SPAN

PAGE = (REPOSITORY / "SECURITY.md").read_text(encoding="utf-8")
TESTS = "".join(
    path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("test_*.py")
)


def test_every_test_that_the_page_names_exists():
    named = [name for name in SPAN.findall(PAGE) if name.startswith("test_")]
    assert len(named) > 15
    assert not [name for name in named if f"def {name}(" not in TESTS]


def test_every_key_that_the_page_names_exists():
    known = REFERENCE["all_keys"]()
    sections = {key.partition(".")[0] for key in known if "." in key}
    named = [name for name in SPAN.findall(PAGE) if name.partition(".")[0] in sections]
    assert len(named) > 5
    assert not [name for name in named if name not in known | sections]


def test_every_link_of_the_page_leads_somewhere():
    for address in LINK.findall(PAGE):
        assert (REPOSITORY / address.partition("#")[0]).exists(), address
