"""The report in a real browser: Debian's chromium by Playwright, and axe-core for accessibility."""

import re
import shutil

import pytest

from segbench.cli import main
from segbench.config_file import build_config
from segbench.report import page as report_page
from segbench.report.page import write_report
from tests.conftest import CHROMIUM, tiny
from tests.fakes import EFFECTS, HOSTILE, fake_sweep
from tests.test_sweep import sweep as run_sweep

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt-get install chromium"),
]

XSS, LONG = HOSTILE[0], "a_decoder_with_a_name_" + "longer" * 6
SIZES = [390, 1280, 2560]
MANY = ["smp", "bilinear", "nearest", "bicubic", "lanczos", "deconv", "carafe", "dysample", "fade", "sapa"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained sweep with images and figures, and names that would do harm."""
    runs = tmp_path_factory.mktemp("it's <b>here")
    decoders = ["bilinear", {"name": "nearest", "label": XSS}, {"name": "subpixel", "label": LONG}]
    config = tiny(runs_dir=str(runs), seeds=[0, 1], decoders=decoders, recipe={"steps": 12})
    _, code, out = run_sweep(build_config(config))
    assert code == 0, out
    return runs / "tiny"


@pytest.fixture(scope="module")
def report(folder):
    done = write_report(folder)
    assert done.notes == []
    return done.path


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Every name hostile, one run missing; no figures and no images."""
    path = tmp_path_factory.mktemp("runs") / "s <script>"
    effects = EFFECTS | {name: 0.02 * i for i, name in enumerate(HOSTILE)}
    fake_sweep(path, effects, classes=[*HOSTILE, "never"], images=6, data=XSS)
    shutil.rmtree(path / "run2-s2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_page._Section, "draw", lambda self: None)
        return write_report(path, gallery=False).path


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """More decoders than colours, of every kind but one, with images."""
    runs = tmp_path_factory.mktemp("runs")
    recipe = {"steps": 8, "batch_size": 2, "crop": 32}
    config = tiny(runs_dir=str(runs), seeds=[0, 1], decoders=MANY, recipe=recipe, baseline=["bilinear"])
    _, code, out = run_sweep(build_config(config))
    assert code == 0, out
    return write_report(runs / "tiny").path


def overflowing(page):
    """Visible elements that stick out of the window, those in a box that scrolls aside."""
    return page.evaluate(
        """() => {
          const scrolls = (e) => {
            for (let p = e; p && p !== document.body; p = p.parentElement) {
              if (["auto", "scroll", "hidden", "clip"].includes(getComputedStyle(p).overflowX)) return true;
            }
            return false;
          };
          const width = document.documentElement.clientWidth;
          const out = [...document.body.querySelectorAll("*")].filter((e) => {
            const box = e.getBoundingClientRect();
            return box.width && (box.right > width + 1 || box.left < -1) && !scrolls(e) && !e.closest("svg");
          });
          if (document.documentElement.scrollWidth > width) out.push(document.documentElement);
          return out.map((e) => `${e.tagName} ${e.className}`);
        }"""
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", SIZES)
def test_loads_quietly_and_nothing_overflows(visit, report, width, scheme):
    page = visit(report, width, scheme)
    assert overflowing(page) == []
    view(page, "Per class")
    page.locator("[data-zoom=focus]").click()
    assert overflowing(page) == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) < 300) == (scheme == "dark")


@pytest.mark.parametrize("width", SIZES)
def test_many_decoders_are_found_chosen_and_filtered(visit, many, width):
    page = visit(many, width)
    rows = [*MANY[1:], "smp"]
    assert names(page) == rows
    assert overflowing(page) == []
    assert "depth 5, strides 4-32 to 1" in page.locator("[data-view=means] tbody tr").last.inner_text()

    def shown():
        tiles = page.locator("[data-pair]:not([hidden]) .name").all_inner_texts()
        faded = page.locator(".plot svg [data-d].faded").evaluate_all("p => [...new Set(p.map(e => e.dataset.d))]")
        assert {rows[int(n)] for n in faded} == set(rows) - set(visible(page))
        assert page.locator(".filter output").inner_text() == f"{len(visible(page))} of 10 shown"
        return visible(page), tiles

    assert len(shown()[1]) == 5
    assert "bilinear" in shown()[1]
    assert "Of 10 chosen decoders 5 are here" in page.locator("[data-fewer]").inner_text()
    page.locator("[data-find]").fill("Guided")
    assert shown() == (["fade", "sapa"], ["fade", "sapa"])
    assert page.locator("[data-fewer]").is_hidden()
    view(page, "Per class")
    heads = page.locator("[data-view=classes]:not([hidden]) thead th:not([hidden]) .name").all_inner_texts()
    assert heads == ["class", "fade", "sapa"]
    assert page.locator("[data-view=classes]:not([hidden]) tbody tr").first.locator("td:not([hidden])").count() == 2
    view(page, "All classes")
    page.locator("[data-find]").fill("")
    for kind in ("fixed", "as shipped"):
        page.locator(f"button[data-kind='{kind}']").click()
    assert shown()[0] == ["deconv", "carafe", "dysample", "fade", "sapa"]
    page.locator(".filter summary").click()
    page.get_by_label("dysample").uncheck()
    assert shown()[0] == ["deconv", "carafe", "fade", "sapa"]
    assert overflowing(page) == []
    page.get_by_role("button", name="None", exact=True).click()
    assert shown() == ([], [])
    page.get_by_role("button", name="All", exact=True).click()
    assert shown()[0] == rows


def visible(page):
    return page.locator("[data-view=means] tbody tr:not([hidden]) th .name").all_inner_texts()


@pytest.mark.parametrize("width", SIZES)
def test_hostile_names_do_no_harm(visit, hostile, width):
    page = visit(hostile, width)
    page.wait_for_timeout(200)
    assert page.title() == "s <script> – segbench"
    shown = page.locator("[data-view=means] tbody th .name").all_inner_texts()
    assert shown == [" ".join(name.split()) for name in [*EFFECTS, *HOSTILE]]
    assert page.locator("img").count() == 0
    assert overflowing(page) == []
    view(page, "Per class")
    assert overflowing(page) == []


def view(page, name):
    page.locator("[data-choice=view]").get_by_text(name, exact=True).click()


def names(page, which="means"):
    return page.locator(f"[data-view={which}]:not([hidden]) tbody th .name").all_inner_texts()


def column(page, heading):
    """Numbers below the n-th heading, None for a hole."""
    cells = page.locator("[data-view=means] tbody tr").locator(f"td:nth-child({heading + 1})")
    return [None if v is None else float(v) for v in cells.evaluate_all("c => c.map(x => x.dataset.v ?? null)")]


def test_sorting(visit, hostile):
    page = visit(hostile)
    heading = page.locator("[data-view=means] thead th:has(.sort)").nth(2)
    for order in ("descending", "ascending", "descending"):
        heading.get_by_role("button").click()
        assert heading.get_attribute("aria-sort") == order
        values = column(page, 2)
        there = [v for v in values if v is not None]
        assert values[-1] is None  # the hole stays last
        assert len(there) == len(values) - 1
        assert there == sorted(there, reverse=order == "descending")
    assert page.locator("[aria-sort]").count() == 1
    first = page.locator("[data-view=means] thead th:has(.sort)").first
    first.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert first.get_attribute("aria-sort") == "ascending"
    assert names(page)[:2] != [*EFFECTS][:2]
    assert sorted(names(page)) == sorted(" ".join(n.split()) for n in [*EFFECTS, *HOSTILE])
    costs = page.locator("[data-view=means] thead th:has(.sort)").last
    costs.get_by_role("button").click()
    assert costs.get_attribute("aria-sort") == "ascending"  # the cheapest first


def test_per_class_view(visit, report):
    page = visit(report)
    assert page.locator("[data-view=classes]:visible").count() == 0
    view(page, "Per class")
    assert page.locator("[data-view=means]").is_hidden()
    assert names(page, "classes") == ["background", "disc", "polygon", "ring", "star", "stroke", "line"]
    page.get_by_label("Metric", exact=False).select_option("biou@0.02")
    shown = page.locator("[data-view=classes]:visible")
    assert shown.count() == 1
    assert shown.get_attribute("data-metric") == "biou@0.02"
    shown.get_by_role("button", name="bilinear").click()
    values = shown.locator("tbody td:nth-child(2)").evaluate_all("c => c.map(x => Number(x.dataset.v))")
    assert values == sorted(values, reverse=True)
    view(page, "All classes")
    assert page.locator("[data-view=means]").is_visible()


def test_downloads(visit, report, folder, capsys):
    page = visit(report)

    def downloaded(button):
        with page.expect_download() as waiting:
            button.click()
        return waiting.value.suggested_filename, waiting.value.path().read_text("utf-8")

    for kind in ("csv", "tex"):
        assert main(["table", str(folder), "--format", kind]) == 0
        assert downloaded(page.locator(f"[data-download={kind}]")) == (f"tiny.{kind}", capsys.readouterr().out)
    view(page, "Per class")
    page.get_by_label("Metric", exact=False).select_option("bf1@3")
    args = ["--per-class", "--metric", "bf1@3", "--columns", "n,score,delta", "--format", "csv"]
    assert main(["table", str(folder), *args]) == 0
    name, text = downloaded(page.locator("[data-download=csv]"))
    assert (name, text) == ("tiny-bf1-3-classes.csv", capsys.readouterr().out)
    name, text = downloaded(page.locator("[data-file]"))
    assert name == "tiny.yaml"
    assert "name: tiny" in text


def test_the_metric_of_the_plots(visit, report):
    page = visit(report)
    plots = page.locator("#g0-plots .plot:visible")
    before = plots.evaluate_all("p => p.map(x => x.dataset.figure)")
    assert "biou-0.02-eval" in before
    assert "trimap" in before
    page.locator("#g0-plots").get_by_text("mIoU", exact=True).first.click()
    after = plots.evaluate_all("p => p.map(x => x.dataset.figure)")
    assert [n.replace("biou-0.02", "miou") for n in before] == after


def until(page, true):
    """Wait for what comes a little after the event."""
    for _ in range(100):
        if true():
            return
        page.wait_for_timeout(20)
    raise AssertionError("it did not happen")


def transforms(page):
    """Of every picture in the viewer, as (zoom, x, y) of the picture's corner, in tile widths and heights."""
    found = page.locator(".viewer .tile img").evaluate_all(
        """imgs => imgs.map((i) => {
          const a = i.getBoundingClientRect(), b = i.parentElement.getBoundingClientRect();
          return [a.width / b.width, (a.left - b.left) / b.width, (a.top - b.top) / b.height];
        })"""
    )
    for other in found[1:]:
        assert other == pytest.approx(found[0], abs=0.01)  # the same crop everywhere
    return found[0]


def test_the_gallery_zooms_everywhere_alike(visit, report):
    page = visit(report)
    viewer = page.locator(".viewer")
    viewer.scroll_into_view_if_needed()
    assert page.locator(".tile").count() == 2 + 2 * 3
    assert transforms(page) == pytest.approx([1, 0, 0], abs=0.01)
    assert all(page.locator(".viewer img").evaluate_all("i => i.map(x => x.complete && x.naturalWidth === 64)"))
    page.get_by_role("button", name="Zoom in").click()
    assert transforms(page) == pytest.approx([1.5, -0.25, -0.25], abs=0.01)
    viewer.focus()
    page.keyboard.press("ArrowRight")
    assert transforms(page) == pytest.approx([1.5, -0.35, -0.25], abs=0.01)
    page.keyboard.press("+")
    assert transforms(page)[0] == pytest.approx(2.25, abs=0.01)
    page.keyboard.press("0")
    assert transforms(page) == pytest.approx([1, 0, 0], abs=0.01)
    page.get_by_role("button", name="Where they differ most").click()
    assert transforms(page)[0] == pytest.approx(4, abs=0.01)
    assert page.locator(".level").inner_text() == "4.0×"
    for _ in range(30):
        page.get_by_role("button", name="Zoom out").click()
    assert transforms(page) == pytest.approx([1, 0, 0], abs=0.01)


def test_the_gallery_by_mouse(visit, report):
    page = visit(report)
    tile = page.locator(".tile").nth(3)
    tile.scroll_into_view_if_needed()
    box = tile.bounding_box()
    x, y, width, height = (box[k] for k in ("x", "y", "width", "height"))
    page.mouse.move(x + width / 4, y + height / 4)
    at = page.evaluate("scrollY")
    page.mouse.wheel(0, -50)
    until(page, lambda: page.evaluate("scrollY") < at)  # not in use yet: the page scrolls
    page.mouse.wheel(0, 50)
    until(page, lambda: page.evaluate("scrollY") == at)
    assert transforms(page)[0] == pytest.approx(1)
    page.mouse.down()
    page.mouse.up()
    page.mouse.wheel(0, -100)
    until(page, lambda: page.locator(".level").inner_text() != "1.0×")
    zoom, left, top = transforms(page)
    assert zoom == pytest.approx(1.49, abs=0.02)
    assert [left, top] == pytest.approx([-(zoom - 1) / 4] * 2, abs=0.02)  # what is under the pointer stays there
    page.mouse.down()
    page.mouse.move(x + width / 4 - 0.1 * width, y + height / 4, steps=4)
    page.mouse.up()
    assert transforms(page) == pytest.approx([zoom, left - 0.1, top], abs=0.02)


def test_the_gallery_by_two_fingers(visit, report):
    page = visit(report, 390, has_touch=True, is_mobile=True)
    tile = page.locator(".tile").nth(2)
    tile.scroll_into_view_if_needed()
    box = tile.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    session = page.context.new_cdp_session(page)

    def touch(kind, apart):
        points = [{"x": x - apart, "y": y, "id": 0}, {"x": x + apart, "y": y, "id": 1}] if apart else []
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", 20)
    for apart in (25, 30, 40, 50, 60):
        touch("touchMove", apart)
    touch("touchEnd", 0)
    zoom, left, top = transforms(page)
    assert zoom == pytest.approx(3, rel=0.1)
    assert [left, top] == pytest.approx([-(zoom - 1) / 2] * 2, abs=0.1)  # around the fingers' middle
    assert page.evaluate("visualViewport.scale") == 1


def test_the_gallery_changes_images(visit, report):
    page = visit(report)
    buttons = page.locator(".thumbs button")
    assert buttons.count() == 3
    first = page.locator("[data-name]").inner_text()
    source = page.locator("[data-pair='0'] .labels").get_attribute("src")
    buttons.nth(1).focus()
    page.keyboard.press("Enter")
    assert buttons.nth(1).get_attribute("aria-pressed") == "true"
    assert buttons.nth(0).get_attribute("aria-pressed") == "false"
    assert page.locator("[data-name]").inner_text() != first
    assert page.locator("[data-pair='0'] .labels").get_attribute("src") != source
    page.locator("[data-opacity]").fill("0")
    assert page.locator(".labels").first.evaluate("e => getComputedStyle(e).opacity") == "0"


def test_everything_is_reached_by_keyboard(visit, report):
    page = visit(report)
    page.keyboard.press("Tab")
    assert page.locator(".skip").evaluate("e => e === document.activeElement")
    assert page.locator(".skip").bounding_box()["width"] > 20  # it shows itself
    wanted = page.locator("button:visible, select:visible, .viewer, .scroll:visible, summary:visible").count()
    reached = set()
    for _ in range(150):
        page.keyboard.press("Tab")
        here = page.evaluate(
            """() => {
              const e = document.activeElement;
              return e.matches("button, select, .viewer, .scroll, summary")
                ? [...document.querySelectorAll("*")].indexOf(e) : -1;
            }"""
        )
        reached.add(here)
    assert len(reached - {-1}) == wanted


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("which", ["report", "hostile", "many"])
def test_axe_finds_no_serious_fault(visit, request, which, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
    page = visit(request.getfixturevalue(which), scheme=scheme)
    page.locator("details").evaluate_all("d => d.forEach((x) => { x.open = true; })")
    for name in ("All classes", "Per class"):
        view(page, name)
        faults = axe.Axe().run(page).response["violations"]
        serious = [f for f in faults if f["impact"] in ("serious", "critical")]
        assert [(f["id"], [n["html"][:200] for n in f["nodes"][:3]]) for f in serious] == []


def test_prints(visit, report):
    page = visit(report, 703, "dark")  # A4 less its margins
    page.emulate_media(media="print")
    assert overflowing(page) == []
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(28, 31, 36)"  # dark on white
    assert page.locator("nav").is_hidden()
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_readable_without_scripts(visit, report):
    page = visit(report, java_script_enabled=False)
    assert page.locator("[data-view=means]").is_visible()
    assert page.locator("#g0-plots .plot").count() > 10
    assert "The gallery needs JavaScript" in page.locator("body").inner_text()
