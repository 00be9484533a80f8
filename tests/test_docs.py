"""The pages say what is there: links lead somewhere, and every page can be found."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "moe_hf").rglob("*.md")})
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s#]*)(#[^)\s]*)?\)")
# The site makes these pages from the docstrings.
GENERATED = ROOT / "docs" / "reference"


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        there = (page.parent / target).resolve() if target else page
        if GENERATED in there.parents:
            continue
        if not there.exists() or (anchor and there.suffix == ".md" and anchor[1:] not in anchors(there)):
            dead.append(target + anchor)
    assert dead == []


def test_every_page_is_linked_from_the_first_page_of_the_site() -> None:
    linked = {(ROOT / "docs" / target).resolve() for target, _ in LINK.findall((ROOT / "docs/index.md").read_text())}
    assert [page.name for page in (ROOT / "docs").glob("*.md") if page not in linked and page.name != "index.md"] == []
