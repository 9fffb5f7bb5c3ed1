"""What a reader takes away from the page, and what it is like on a phone."""

from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from segbench.report.page import write_report
from tests.fakes import EFFECTS, fake_sweep
from tests.test_report_browser import pytestmark, until  # noqa: F401


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report(fake_sweep(tmp_path_factory.mktemp("runs") / "s", EFFECTS), gallery=False).path


def test_a_plot_is_downloaded_as_it_is_shown(visit, report):
    page = visit(report, scheme="dark")
    plot = page.locator("#g0-differences .plot").first
    with page.expect_download() as waiting:
        plot.get_by_role("button").click()
    assert waiting.value.suggested_filename == "biou-0.02-difference.svg"
    root = ElementTree.parse(waiting.value.path()).getroot()
    text = waiting.value.path().read_text("utf-8")
    assert root.get("width") == "252pt"  # a column of a paper
    assert "var(" not in text
    assert "#1c1f24" in text  # dark ink on whatever is below, whatever the page's colours are
    shown = plot.locator("svg text").all_text_contents()
    assert [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")] == shown
    drawn = {e.get("id") for e in root.iter() if e.get("id")}
    assert {e.get("href").removeprefix("#") for e in root.iter("{http://www.w3.org/2000/svg}use")} <= drawn


def test_the_paragraph_for_a_paper_is_copied(visit, report):
    page = visit(report, permissions=["clipboard-read", "clipboard-write"])
    page.get_by_text("As text, for a paper").click()
    page.get_by_role("button", name="Copy").click()
    until(page, lambda: page.locator(".paper [role=status]").inner_text() == "Copied.")
    assert page.evaluate("navigator.clipboard.readText()") == page.locator(".paper p").inner_text()


def test_on_a_phone_plots_are_readable_and_more_of_the_table_is_announced(visit, report):
    page = visit(report, 390, has_touch=True, is_mobile=True)
    sizes = page.locator(".plot:visible svg text").evaluate_all(
        "t => t.map(e => parseFloat(getComputedStyle(e).fontSize) * e.ownerSVGElement.getScreenCTM().a)"
    )
    assert min(sizes) > 10.5  # px
    table = page.locator("[data-view=means]")
    assert table.evaluate("e => e.scrollWidth - e.clientWidth") > 100
    first = table.locator("tbody th").first
    at = first.bounding_box()["x"]

    def edge():
        """Brightness of the last pixels at the right of the heading, where nothing is written."""
        box = table.locator("thead tr").first.bounding_box() | {"x": table.bounding_box()["x"] + 351, "width": 8}
        return cv2.imdecode(np.frombuffer(page.screenshot(clip=box), np.uint8), cv2.IMREAD_GRAYSCALE)[2:4].mean()

    table.scroll_into_view_if_needed()
    before = edge()
    table.evaluate("e => e.scrollTo(e.scrollWidth, 0)")
    assert first.bounding_box()["x"] == pytest.approx(at, abs=1)  # the names stay
    assert before < edge() - 10
