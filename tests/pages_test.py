"""The pages of the documentation say what is so: their examples run, each page as one session."""

import doctest
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {
    "from_the_article.md": 50,
    "contrastive_losses.md": 30,
    "self_supervised.md": 30,
    "meta_learning.md": 50,
}
LONG = ("self_supervised.md", "meta_learning.md")


@pytest.mark.parametrize(
    ("name", "least"),
    [
        pytest.param(*page, marks=pytest.mark.slow if page[0] in LONG else ())
        for page in PAGES.items()
    ],
)
def test_examples(name, least):
    blocks = re.findall(
        r"^```pycon\n(.*?)^```$", (DOCS / name).read_text(), re.MULTILINE | re.DOTALL
    )
    session = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, name, name, 0)
    report = []
    result = doctest.DocTestRunner().run(session, out=report.append)
    assert result.failed == 0, "".join(report)
    assert result.attempted >= least


@pytest.mark.parametrize("name", PAGES)
def test_every_anchor_has_its_heading(name):
    text = (DOCS / name).read_text()
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= slugs
