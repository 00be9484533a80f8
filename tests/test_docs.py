"""The pages say what is there: links lead somewhere, and every page can be found."""

import pkgutil
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


def is_there(name: str) -> bool:
    """Whether `moe_hf.a.b` is a module or what a module holds."""
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: str(page.relative_to(ROOT))
)
def test_files_and_modules_that_a_page_names_are_there(page: Path) -> None:
    quoted = re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))
    files = [name for name in quoted if re.fullmatch(r"[\w./-]+\.py", name)]
    # `moe_hf.a.b` is how pages write "any module".
    modules = {name for text in quoted for name in re.findall(r"\bmoe_hf(?:\.\w+)+", text)} - {"moe_hf.a.b"}
    # A page may name a file from the root, from the package, from itself, or by its last folders.
    known = [
        f"/{file.relative_to(ROOT)}"
        for room in ("moe_hf", "tests", "docs", ".ci")
        for file in (ROOT / room).rglob("*.py")
    ]
    known += [f"/{file.name}" for file in ROOT.glob("*.py")]
    gone = [name for name in files if not any(file.endswith(f"/{name}") for file in known)]
    assert gone + [name for name in modules if not is_there(name)] == []


@pytest.mark.parametrize("room", ["base", "ops/routing", "ops/experts", "ops/sequence", "ops/attention"])
def test_the_map_names_every_file_of_a_room(room: str) -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith(f"| `{room}/` |"))
    named = {name.rpartition("/")[2] for name in re.findall(r"`([\w/]+)`", row)}
    assert {file.stem for file in (ROOT / "moe_hf" / room).rglob("*.py")} - {"__init__"} <= named
