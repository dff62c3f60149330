"""The table of endpoints: the server's own list, held against what the build captured."""

from __future__ import annotations

from bs4 import BeautifulSoup
from checkout import ROOT
from course_endpoints import called, readable, routes
from sphinx_external_toc.parsing import parse_toc_yaml

PAGES = [str(page) for page in parse_toc_yaml(ROOT / "_toc.yml")]


def test_some_chapter_called_every_endpoint_of_the_server(build):
    found = called(PAGES, build / "captures")
    assert len(found) > 40
    assert [at for at, endpoint in found.items() if not endpoint.statuses] == []


def test_the_page_has_a_row_for_every_endpoint(build):
    html = (build / "html/book/appendix/endpoints.html").read_text(encoding="utf-8")
    rows = [
        " ".join(row.td.get_text().split())
        for row in BeautifulSoup(html, "html.parser").select("table.table tbody tr")
    ]
    assert sorted(rows) == sorted(
        f"{method} {readable(route)}" for route, methods in routes().items() for method in methods
    )


def test_an_endpoint_that_nobody_called_is_listed_without_a_status(tmp_path):
    found = called(["nobody/was/here"], tmp_path)
    assert found
    assert not any(endpoint.statuses or endpoint.pages for endpoint in found.values())
