"""The site's files: whole pages, links that lead somewhere, sizes, equal bytes, nothing that a name could break."""

import base64
import io
import json
import re
import runpy
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

from robustsuite.errors import InputError
from robustsuite.leaderboard.site.axes import axis
from robustsuite.leaderboard.site.names import file_names
from robustsuite.leaderboard.site.pages import write_site
from robustsuite.leaderboard.site.pictures import shown
from robustsuite.leaderboard.site.scatter import pareto, scatter

made = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("site_boards.py"))))
VOID = {"meta", "link", "br", "img", "input", "rect", "path", "circle"}


class Page(HTMLParser):
    """Elements in order, with a check that every one is closed where it was opened."""

    def __init__(self, path):
        super().__init__()
        self.path, self.stack, self.elements, self.ids, self.text = path, [], [], [], []
        self.feed(path.read_text())
        self.close()
        assert self.stack == [], f"{path} leaves {self.stack} open"

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        assert len(values) == len(attrs), f"{self.path}: an attribute of <{tag}> occurs twice"
        self.elements.append((tag, values))
        if "id" in values:
            self.ids.append(values["id"])
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack, f"{self.path} closes <{tag}>, which is not open"
        assert self.stack.pop() == tag, f"{self.path} closes <{tag}> out of turn"

    def handle_data(self, data):
        self.text.append(data)

    def every(self, tag):
        return [values for name, values in self.elements if name == tag]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    boards = [made.mixed_board(), made.reported_board(), made.hostile_board(), made.make_board([], id="empty", n=5)]
    write_site(boards, out)
    return out


def pages_of(out):
    return [Page(path) for path in sorted(out.rglob("*.html"))]


def test_pages_are_whole_and_say_what_they_are(site):
    pages = pages_of(site)
    assert len(pages) == 1 + 4 * 2 + 9 + 6 + 7
    for page in pages:
        assert len(page.ids) == len(set(page.ids)), f"{page.path}: an id occurs twice"
        assert page.elements[0] == ("html", {"lang": "en"})
        assert len(page.every("h1")) == 1
        assert all(v.get("aria-hidden") == "true" or v.get("aria-labelledby") for v in page.every("svg"))
        levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
        assert all(after - before <= 1 for before, after in zip([0, *levels], levels, strict=False))
        for image in page.every("img"):
            assert image["alt"]
        for table in [i for i, (tag, _) in enumerate(page.elements) if tag == "table"]:
            assert page.elements[table + 1][0] == "caption"
        assert all(values.get("scope") in ("row", "col") for values in page.every("th"))


def test_charts_have_a_title_a_description_and_points_that_link(site):
    page = Page(site / "digits-linf" / "index.html")
    charts = [v for v in page.every("svg") if v.get("class") == "chart"]
    assert len(charts) == 3
    for chart in charts:
        assert set(chart["aria-labelledby"].split()) <= set(page.ids)
    points = [v for v in page.every("a") if v.get("class", "").startswith("pt")]
    assert len(points) == 9
    assert all(
        v["aria-label"].startswith(("Best", "Second", "Weak")) or "net: clean" in v["aria-label"] for v in points
    )


def test_every_link_leads_to_a_file_of_the_site(site):
    for page in pages_of(site):
        for tag, name in (("a", "href"), ("link", "href"), ("script", "src")):
            for values in page.every(tag):
                address = values.get(name)
                if address is None:
                    continue
                parts = urlsplit(address)
                if parts.scheme:
                    assert parts.scheme in ("http", "https")
                    continue
                target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
                assert target.is_file(), f"{page.path} links {address}"
                assert target.is_relative_to(site.resolve())
                if parts.fragment and not parts.fragment.startswith("a="):
                    assert parts.fragment in Page(target).ids


def test_nothing_comes_from_the_network_and_nothing_is_inline(site):
    for page in pages_of(site):
        policy = next(v["content"] for v in page.every("meta") if v.get("http-equiv"))
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        for tag, values in page.elements:
            assert not any(name.startswith("on") or name == "style" for name in values), (page.path, tag, values)
            for name in ("src", "xlink:href"):
                assert not values.get(name, "").startswith(("http", "//"))
        assert all(v.get("src") or v.get("type") == "application/json" for v in page.every("script"))
    style = (site / "_assets" / "style.css").read_text()
    assert "url(" not in style
    assert "@import" not in style


def test_hostile_names_stay_text_and_in_their_folder(site):
    inside = {path.relative_to(site).parts[0] for path in site.rglob("*")}
    (folder,) = inside - {"index.html", "_assets", "digits-linf", "robustbench", "empty"}
    assert re.fullmatch(r"outside-b-[0-9a-f]{8}", folder)
    names = [path.name for path in (site / folder / "entries").iterdir()]
    assert len(names) == 7
    assert len({name.casefold() for name in names}) == 7
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9._-]*\.html", name) and len(name) < 100 for name in names)
    for page in [Page(site / "index.html"), *pages_of(site / folder)]:
        allowed = {"theme.js", "board.js", "charts.js", "compare.js", "mcnemar.js", "entry.js"}
        assert {v["src"].rpartition("/")[2] for v in page.every("script") if "src" in v} <= allowed
        assert not [v for v in page.every("img") if not v["src"].startswith("data:image/png;base64,")]
        assert not [v for v in page.every("a") if v.get("href", "").lower().startswith("javascript")]
        assert made.HOSTILE in "".join(page.text)
    data = (site / folder / "compare.html").read_text()
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', data, re.DOTALL)[1]
    assert not set("<>&") & set(block)
    assert made.HOSTILE[:70] in json.loads(block)["entries"][0]["name"]


def test_names_of_files():
    assert file_names(["0123abcd", "Ring_v1.2"])[0] == "0123abcd"
    names = file_names(["A", "a", "a", "", ".", "..", "a/b", "a\\b", "ä" * 200, "\ud800", "a."])
    assert len({name.casefold() for name in names}) == len(names)
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,79}", name) and not name.endswith(".") for name in names)
    assert file_names(["x/y"]) == file_names(["x/y"])


def test_equal_boards_give_equal_bytes(site, tmp_path):
    boards = [made.mixed_board(), made.reported_board(), made.hostile_board(), made.make_board([], id="empty", n=5)]
    for path in write_site(boards, tmp_path):
        assert path.read_bytes() == (site / path.relative_to(tmp_path)).read_bytes(), path


def test_table_is_complete_and_in_the_boards_order(site):
    board = made.mixed_board()
    page = (site / "digits-linf" / "index.html").read_text()
    rows = re.findall(r"<tr[^>]* data-key=.*?</tr>", page, re.DOTALL)
    assert [re.search(r'<th scope="row".*?<a [^>]*>(.*?)</a>', row)[1] for row in rows] == [r.label for r in board.rows]
    for row, text in zip(board.rows, rows, strict=True):
        assert f"{100 * row.best_known.value:.1f}<small>[{100 * row.best_known.ci95[0]:.1f}, " in text
        assert ("not ranked" in text) == (row.rank is None)
    words = {row.label: text for row, text in zip(board.rows, rows, strict=True)}
    assert ">randomised</span>" in words["Random net"]
    assert ">partial</span>" in words["Partial net"]
    assert ">unreliable</span>" in words["Flagged net"]
    assert ">flag: zero gradients</span>" in words["Flagged net"]
    assert ">unverified</span>" in words["Unchecked net"]
    assert ">corrected</span>" in words["Corrected net"]
    best = words["Best net"]
    assert '<rect class="c" y="3" width="20.0" height="6"/>' in best  # 40 of 200 certified
    assert f">{100 * board.rows[0].gap:.1f}</td>" in words[board.rows[0].label]
    wins = sum(c.better == board.rows[0].key for c in board.comparisons)
    assert f">{wins} of 4</td>" in words[board.rows[0].label]


def test_reported_numbers_are_called_that(site):
    page = (site / "robustbench" / "index.html").read_text()
    assert "Reported numbers." in page
    assert "nothing on this board was measured or verified here" in page
    assert "70.00<small>" in page
    entry = (site / "robustbench" / "entries").glob("*.html")
    text = sorted(entry)[0].read_text()
    assert "robustbench measured it" in text
    assert "&lt;b&gt;more&lt;/b&gt;" in text
    assert "Do it again" not in text


def test_boards_without_entries_are_pages_too(site):
    assert "This board has no entries yet." in (site / "empty" / "index.html").read_text()
    assert "There are not yet two entries to compare." in (site / "empty" / "compare.html").read_text()


def test_no_board_at_all(tmp_path):
    write_site([], tmp_path)
    assert "No board has been published yet." in (tmp_path / "index.html").read_text()


def test_a_page_of_somebody_else_is_not_overwritten(tmp_path):
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(InputError, match="was not written by"):
        write_site([], tmp_path)
    assert (tmp_path / "index.html").read_text() == "mine"


def test_entry_says_everything_that_its_record_says(site):
    board = made.mixed_board()
    row = next(r for r in board.rows if r.label == "Best net")
    text = (site / "digits-linf" / "entries" / f"{row.key}.html").read_text()
    record = row.record
    for said in (record.content_sha256, record.outcome_sha256, "steps = 100", "where supported", "small-cnn", "41898"):
        assert said in text
    assert text.count("data:image/png;base64,") == 9
    corrected = next(r for r in board.rows if r.label == "Corrected net")
    text = (site / "digits-linf" / "entries" / f"{corrected.key}.html").read_text()
    for said in (
        "A longer attack breaks these.",
        "2 more examples broken (3, 17)",
        "b" * 64,
        "c" * 64,
        "The authors agree.",
    ):
        assert said in text


def test_exports_are_those_of_the_tables(site):
    from robustsuite.leaderboard.export import FORMATS

    board = made.mixed_board()
    for name, write in FORMATS.items():
        assert (site / "digits-linf" / f"table.{name}").read_text() == write(board)
    assert "\\toprule" in (site / "digits-linf" / "table.tex").read_text()


def test_three_hundred_entries_stay_small(tmp_path):
    write_site([made.large_board()], tmp_path)
    assets = sum(path.stat().st_size for path in (tmp_path / "_assets").iterdir())
    table = (tmp_path / "large" / "index.html").stat().st_size
    compare = (tmp_path / "large" / "compare.html").stat().st_size
    assert table + assets < 1_000_000
    assert table + compare + assets < 2_000_000
    assert len(list((tmp_path / "large" / "entries").iterdir())) == 300


def test_pareto_front_against_all_pairs():
    points = [tuple(p) for p in np.random.default_rng(0).integers(0, 12, (80, 2)) / 12]

    def beaten(i):
        (x, y) = points[i]
        return any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)

    assert pareto(points) == {i for i in range(80) if not beaten(i)}
    assert pareto([(-1.0, -1.0), (0.0, 0.0)]) == {1}


def test_entries_without_a_rank_are_not_on_the_front():
    board = made.mixed_board()
    chart = scatter(board, [row.key for row in board.rows])
    on_front = {p.key for p in chart.points if p.front}
    assert on_front
    assert on_front <= {row.key for row in board.rows if row.rank is not None}


def test_axes_have_round_ticks_around_the_values():
    made_axis = axis([0.613, 0.702], 0, 100, ceiling=1.0)
    assert made_axis.ticks == (0.6, 0.62, 0.64, 0.66, 0.68, 0.7, 0.72)
    assert made_axis.at(0.66) == 50
    assert axis([0.5, 1.0], 0, 100, ceiling=1.0).ticks[-1] == 1.0
    assert len(axis([0.3], 0, 100).ticks) >= 2
    assert axis([], 0, 1).high > 0


def test_pictures_show_the_images_themselves():
    from PIL import Image

    picture = made.mixed_board().rows[0].gallery or next(r for r in made.mixed_board().rows if r.gallery).gallery
    page = shown(picture[1])
    pixels = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
        for uri in (page.clean_uri, page.adversarial_uri, page.difference_uri)
    ]
    expected = np.rint(picture[1].x.transpose(1, 2, 0).astype(np.float64) * 255)
    assert (pixels[0] == expected).all()
    change = picture[1].x_adv.astype(np.float64) - picture[1].x
    gain = float(page.gain)
    assert 0.9 < gain * np.abs(change).max() / 0.5 <= 1 + 1e-6
    assert (pixels[2] == np.rint((0.5 + gain * change).clip(0, 1) * 255).transpose(1, 2, 0)).all()
