"""The page to draw on: what it holds, what it computes, and that every visitor can use it."""

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from browsing import DESKTOP, PAPER, PHONE, SMALL_PHONE, barriers, overflow
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image
from playwright.sync_api import Browser, Locator, Page
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnlib.data import datasets, sources
from unlearnlib.data.requests import Classes
from unlearnlib.models import architectures, checkpoints, networks
from unlearnlib.pipeline.paths import place
from unlearnlib.report import draw, pages
from unlearnlib.zero_shot import read_out, variants

REQUEST = Classes([0])
CLASSES = tuple(map(str, range(10)))
RELEARNED = {"original": 0.0, "retrain": 40.0, "masked_logit": 1.0, "gkt_to_its_end": float("inf")}


def mnist(each: int) -> tuple[Tensor, Tensor]:
    """Read the first images of every class of MNIST-5k."""
    raw = sources.load_source("mnist-5k")
    labels = torch.tensor(raw.labels.astype(np.int64))
    some = draw.picked(labels, 10, each)
    return datasets.images(raw.images[some.numpy()]), labels[some]


def taught(images: Tensor, labels: Tensor, *, width: float) -> nn.Module:
    """Teach a network of the study a little."""
    torch.manual_seed(0)
    network = architectures.build("allcnn", width=width).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(40):
        batch = torch.randint(len(images), (64,))
        optimizer.zero_grad()
        F.cross_entropy(network(images[batch]), labels[batch]).backward()
        optimizer.step()
    return network.eval()


@dataclass
class Study:
    """What a page was made of, and its file."""

    models: dict[str, nn.Module]
    images: Tensor
    labels: Tensor
    file: Path


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    """Make a report of one notebook that draws, with networks of two widths."""
    images, labels = mnist(60)
    kept = ~REQUEST.mask(labels)
    original = taught(images, labels, width=1 / 8)
    masked = read_out.masked_logit(
        original, REQUEST, shape=(1, 28, 28), settings=read_out.Settings(), seed=0
    )
    models = {
        "original": original,
        "retrain": taught(images[kept], labels[kept], width=1 / 16),
        "masked_logit": masked.network,
        "gkt_to_its_end": taught(images, labels, width=1 / 16),
    }
    some = draw.picked(labels, 10, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNLEARNLIB_ROOT", str(tmp_path_factory.mktemp("study")))
        file = write(patch, models, images[some], labels[some])
        yield Study(models, images[some], labels[some], file)


def write(
    patch: pytest.MonkeyPatch, models: dict[str, nn.Module], images: Tensor, labels: Tensor
) -> Path:
    """Write the page of a notebook that shows the models and the game."""
    caught: list[tuple[dict[str, Any], dict[str, Any]]] = []
    patch.setattr(draw, "display", lambda data, raw, metadata=None: caught.append((data, metadata)))
    draw.show(
        models, images, labels, classes=CLASSES, request=REQUEST, relearned=RELEARNED, most=100,
        seed=0, caption="In percent.",
    )  # fmt: skip
    draw.show_game()
    outputs = [new_output("display_data", data=d, metadata=m or {}) for d, m in caught]
    cells = [new_markdown_cell("# Draw\n\nA question?\n\n## Ask"), new_code_cell("show()")]
    cells += [new_markdown_cell("## Spot"), new_code_cell("show_game()")]
    cells[1].outputs, cells[3].outputs = outputs[:1], outputs[1:]
    where = place("quick")
    where.notebooks.mkdir(parents=True, exist_ok=True)
    (where.notebooks / "51_draw.ipynb").write_text(json.dumps(new_notebook(cells=cells)))
    pages.build("quick")
    return where.pages / "51_draw.html"


# ------------------------------------------------------------------------------------- the content


def test_models_that_are_there_are_loaded_in_the_order_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    here, nets = place("quick"), [architectures.build("allcnn", width=0.03) for _ in range(4)]
    toys.record(here.run("train", "seed1"), nets[0])
    toys.record(here.run("gkt", "gkt-seed1"), nets[1])
    snapshots = [{"model": checkpoints.pack(one)} for one in nets[2:]]
    toys.record(here.run("gkt_transfers", "gkt-seed1"), nets[1], snapshots=snapshots)
    names = ["gkt_to_its_end", "gkt", "original", "retrain", "gkt_prior_to_its_end"]
    found = draw.models(here, names, 1)
    assert list(found) == ["gkt_to_its_end", "gkt", "original"]
    expected = (nets[3], nets[1], nets[0])
    assert all(map(toys.states_equal, found.values(), expected))
    assert not any(one.training for one in found.values())
    assert draw.models(here, names, 0) == {}


def test_the_first_images_of_every_class_are_picked() -> None:
    labels = torch.tensor([1, 0, 1, 2, 1, 0, 0])
    assert draw.picked(labels, 3, 2).tolist() == [1, 5, 0, 2, 3]


def test_every_row_of_the_main_table_has_a_colour_that_is_seen_on_both_grounds() -> None:
    names = [*variants.ROWS, f"gkt{variants.TO_ITS_END}"]
    colours = [draw.colour(name) for name in names]
    assert len(set(colours)) == len(names)
    assert draw.colour(draw.GOLD) == ""  # that of the text
    for shown in [*filter(None, colours), draw.OTHER]:
        for ground in ("#ffffff", "#14171c"):
            assert contrast(shown, ground) >= 3, (shown, ground)


def contrast(one: str, other: str) -> float:
    """Compute the contrast of two colours (WCAG 2.2)."""

    def luminance(colour: str) -> float:
        parts = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_page_holds_models_images_and_what_an_attacker_found(study: Study) -> None:
    found = draw.page(
        study.models, study.images, study.labels, classes=CLASSES, request=REQUEST,
        relearned=RELEARNED, most=100, seed=3,
    )  # fmt: skip
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["forgotten"] == [0] and found["seed"] == 3
    said = [(m["title"], m["gold"], m["unlearned"], m["relearned"]) for m in found["models"]]
    assert said == [
        ("Original", False, False, 0.0),
        ("Retrained", True, False, 40.0),
        ("Masked logit", False, True, 1.0),
        ("GKT, to its end", False, True, None),
    ]
    pixels = np.frombuffer(base64.b64decode(found["images"]["pixels"]), np.uint8)
    expected = (255 * study.images.numpy()).round().ravel()
    np.testing.assert_array_equal(pixels, expected)


def test_pictures_in_colour_are_refused(study: Study) -> None:
    with pytest.raises(ValueError, match="a page draws in grey"):
        draw.page(
            study.models, torch.rand(2, 3, 28, 28), torch.zeros(2), classes=CLASSES,
            request=REQUEST, relearned={}, most=1, seed=0,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("largest", "extra", "said"),
    [
        (100_000, {}, "above 100000: give fewer models or a smaller width"),
        (draw.LARGEST, {"delete": architectures.build("lenet5")}, "features.2: MaxPool2d"),
    ],
)
def test_networks_that_a_page_cannot_hold_leave_the_table_alone(
    study: Study,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    largest: int,
    extra: dict[str, nn.Module],
    said: str,
) -> None:
    caught: list[dict[str, Any]] = []
    monkeypatch.setattr(draw, "display", lambda data, **_: caught.append(data))
    monkeypatch.setattr(draw, "LARGEST", largest)
    draw.show(
        study.models | extra, study.images, study.labels, classes=CLASSES, request=REQUEST,
        relearned={}, most=1, seed=0, caption="",
    )  # fmt: skip
    assert draw.MIME not in caught[0] and "<table>" in caught[0]["text/html"]
    assert said in capsys.readouterr().out


def test_the_table_has_every_models_answer_to_every_image(study: Study) -> None:
    table = BeautifulSoup(study.file.read_text(), "html.parser").select_one(".draw-still table")
    heads = [image["alt"] for image in table.select("thead img")]
    assert heads == [CLASSES[k] for k in study.labels]
    for row, network in zip(table.select("tbody tr"), study.models.values(), strict=True):
        sure, said = networks.predict(network, study.images).softmax(1).max(1)
        expected = [f"{k} {100 * p:.0f}" for k, p in zip(said.tolist(), sure.tolist(), strict=True)]
        assert [cell.get_text() for cell in row.select("td")] == expected


def test_a_page_to_draw_on_is_small_and_runs_nothing_but_its_own(study: Study) -> None:
    text = study.file.read_text()
    soup = BeautifulSoup(text, "html.parser")
    assert len(text.encode()) < 3_000_000
    policy = soup.find("meta", {"http-equiv": "Content-Security-Policy"})["content"]
    assert "default-src 'none'" in policy and "script-src 'unsafe-inline'" in policy
    assert "unsafe-eval" not in policy
    assert pages.check_page(text) == []
    board = soup.select_one(".draw")
    board.table.decompose()
    assert "drawing board without a table" in pages.check_page(str(soup))


# ------------------------------------------------------------------------------------- in a browser


@pytest.fixture
def visitor(browser: Browser, study: Study) -> Iterator[Page]:
    """Open the page with the network off; whatever it says or asks for fails the test."""
    page, heard = browser.new_context(offline=True).new_page(), []
    page.on("console", lambda said: heard.append(said.text))
    page.on("pageerror", lambda error: heard.append(f"uncaught: {error}"))
    page.on("request", lambda request: heard.append(request.url))
    page.set_viewport_size({"width": DESKTOP, "height": 900})
    page.goto(study.file.as_uri())
    yield page
    asked = [one for one in heard if one != study.file.as_uri() and not one.startswith("data:")]
    page.context.close()
    assert asked == []


def numbers(page: Page) -> list[list[str]]:
    """Read the bars of every model as their numbers."""
    rows = page.locator(".draw-answers tbody tr").all()
    return [row.locator(".draw-value").all_text_contents() for row in rows]


def stroke(page: Page, *points: tuple[float, float]) -> None:
    """Draw a line along points of the board, each a share of its side."""
    box = page.locator(".draw-canvas").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for point in places[1:]:
        page.mouse.move(*point, steps=5)
    page.mouse.up()


def seen(page: Page) -> np.ndarray:
    """Read the image that the networks see: ``[H, W]``, from 0 to 1."""
    picture = """canvas => Array.from(canvas.getContext("2d").getImageData(0, 0, 28, 28).data)"""
    pixels = page.locator(".draw-seen").evaluate(picture)
    return np.array(pixels).reshape(28, 28, 4)[..., 3] / 255


def test_the_page_computes_what_pytorch_does(visitor: Page, study: Study) -> None:
    asked = """images => {
        const page = JSON.parse(document.querySelector(".draw script").textContent);
        return page.models.map(live.network).map(
            (layers) => images.map((image) => Array.from(live.logits(layers, image, 28, 28))));
    }"""
    found = visitor.evaluate(asked, study.images.flatten(1).tolist())
    assert len(study.images) >= 20
    for logits, network in zip(found, study.models.values(), strict=True):
        expected = networks.predict(network, study.images)
        assert expected[:, 1:].std() > 1
        torch.testing.assert_close(torch.tensor(logits), expected, rtol=0, atol=1e-2)


def test_the_bars_are_the_probabilities_of_the_image_that_is_shown(
    visitor: Page, study: Study
) -> None:
    for bars, network in zip(numbers(visitor), study.models.values(), strict=True):
        expected = 100 * networks.predict(network, study.images[:1]).softmax(1)[0]
        np.testing.assert_allclose([float(value) for value in bars], expected, atol=1)
    np.testing.assert_allclose(seen(visitor), study.images[0, 0], atol=0.01)


def test_a_stroke_changes_the_answers_and_is_seen_as_mnist_would(visitor: Page) -> None:
    before = numbers(visitor)
    stroke(visitor, (0.1, 0.1), (0.12, 0.5))  # short, thin and in a corner
    assert numbers(visitor) != before
    image = seen(visitor)
    assert image.max() > 0.9
    rows, columns = np.nonzero(image > 0.1)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20, 21)
    centre = [(image.sum(axis) * np.arange(28)).sum() / image.sum() for axis in (0, 1)]
    np.testing.assert_allclose(centre, 14, atol=0.3)
    assert not visitor.locator(".draw-strip [aria-pressed=true]").count()


def test_a_drawn_one_is_a_one(visitor: Page) -> None:
    stroke(visitor, (0.5, 0.2), (0.47, 0.8))
    heads = visitor.locator(".draw-answers tbody tr:first-child .draw-value")
    assert int(heads.nth(1).text_content()) > 50


def test_a_finger_draws_as_a_mouse_does(browser: Browser, study: Study) -> None:
    context = browser.new_context(
        offline=True, has_touch=True, viewport={"width": PHONE, "height": 800}
    )
    page = context.new_page()
    page.goto(study.file.as_uri())
    before = numbers(page)
    page.locator(".draw-canvas").tap(position={"x": 80, "y": 90})
    assert numbers(page) != before
    context.close()


def test_clearing_empties_the_board_and_the_bars(visitor: Page) -> None:
    visitor.locator(".draw-clear").click()
    assert {value for bars in numbers(visitor) for value in bars} == {""}
    assert seen(visitor).max() == 0
    assert "pick a test image" in visitor.locator(".draw-told").text_content()


def test_a_keyboard_picks_an_image_and_every_answer_is_read_out(
    visitor: Page, study: Study
) -> None:
    before = numbers(visitor)
    button = visitor.get_by_role("button", name="Test image of class 3, number 2")
    visitor.locator(".draw-clear").focus()
    for _ in range(8):
        visitor.keyboard.press("Tab")
    assert button.evaluate("one => one === document.activeElement")
    visitor.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    assert numbers(visitor) != before
    np.testing.assert_allclose(seen(visitor), study.images[7, 0], atol=0.01)
    status = visitor.locator(".draw-answers [role=status]")
    visitor.wait_for_function("one => one.textContent.includes('Masked logit: ')",
                              arg=status.element_handle(), timeout=3000)  # fmt: skip
    assert all(variants.title(name) in status.text_content() for name in study.models)


def game(page: Page) -> Locator:
    return page.locator(".spot")


def gold_is(page: Page, study: Study) -> int:
    """Find which of the two is gold, by its answer to the image that is shown."""
    image = torch.tensor(seen(page), dtype=torch.float32)[None, None]
    expected = 100 * networks.predict(study.models["retrain"], image).softmax(1)[0].numpy()
    sides = game(page).locator(".spot-bars").all()
    bars = [side.locator(".draw-value").all_text_contents() for side in sides]
    gaps = [np.abs(np.array(one, dtype=float) - expected).max() for one in bars]
    return int(np.argmin(gaps))


def test_the_gold_is_spotted_and_right_guesses_are_counted(visitor: Page, study: Study) -> None:
    spot, said = game(visitor), game(visitor).get_by_role("status")
    opponents = set()
    for number, right in enumerate([True, False, True, True], start=1):
        assert spot.locator(".spot-name").all_text_contents() == ["Model A", "Model B"]
        gold = gold_is(visitor, study)
        spot.locator(".spot-guess").nth(gold if right else 1 - gold).click()
        names = spot.locator(".spot-name").all_text_contents()
        assert names[gold].endswith("gold, retrained")
        opponents.add(names[1 - gold].partition(": ")[2])
        counted = number - (number >= 2)
        assert f"{counted} of {number} right" in said.text_content()
        assert said.text_content().startswith("Right" if right else "No")
        assert "mini-batch" in said.text_content() and "gold after 40" in said.text_content()
        assert spot.locator(".spot-guess:enabled").count() == 0
        visitor.keyboard.press("Enter")  # the next pair has the focus
    assert opponents == {"Masked logit", "GKT, to its end"}


def test_the_game_follows_the_image_until_it_is_judged(visitor: Page) -> None:
    bars = game(visitor).locator(".spot-bars").first
    before = bars.inner_text()
    game(visitor).locator(".spot-other").click()
    stroke(visitor, (0.5, 0.2), (0.47, 0.8))
    assert bars.inner_text() != before


def test_the_same_seed_deals_the_same_pairs(browser: Browser, study: Study) -> None:
    def dealt() -> list[str]:
        page = browser.new_context(offline=True).new_page()
        page.goto(study.file.as_uri())
        found = []
        for _ in range(3):
            game(page).locator(".spot-guess").first.click()
            found += game(page).locator(".spot-name").all_text_contents()
            game(page).locator(".spot-next").click()
        page.context.close()
        return found

    assert dealt() == dealt()


def test_no_visitor_is_kept_out(visitor: Page) -> None:
    game(visitor).locator(".spot-guess").first.click()
    visitor.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    found = overflow(visitor, DESKTOP) + barriers(visitor)
    visitor.emulate_media(color_scheme="dark")
    found += [f"dark: {barrier}" for barrier in barriers(visitor, "color-contrast")]
    visitor.emulate_media(color_scheme="light")
    found += overflow(visitor, PHONE) + barriers(visitor) + overflow(visitor, SMALL_PHONE)
    found += overflow(visitor, PAPER, media="print")
    assert found == []


def test_paper_has_the_table_in_place_of_the_board(visitor: Page) -> None:
    table, board = visitor.locator(".draw-still table"), visitor.locator(".draw-live")
    assert board.is_visible() and not table.is_visible()
    visitor.emulate_media(media="print")
    assert table.is_visible() and not board.is_visible()


def test_without_javascript_the_page_shows_the_table(browser: Browser, study: Study) -> None:
    page = browser.new_context(offline=True, java_script_enabled=False).new_page()
    page.goto(study.file.as_uri())
    assert page.locator(".draw-still table").is_visible()
    assert not page.locator(".draw-live").is_visible()
    assert page.locator(".spot-without").is_visible()
    page.context.close()


def test_gold_has_the_colour_of_the_text_in_light_and_dark(visitor: Page) -> None:
    drawn = "one => getComputedStyle(one, '::after').backgroundColor"
    for scheme in ("light", "dark"):
        visitor.emulate_media(color_scheme=scheme)
        bar = visitor.locator(".draw-answers .gold .draw-bar").first.evaluate(drawn)
        text = visitor.locator("body").evaluate("one => getComputedStyle(one).color")
        assert bar == text


def test_a_picture_in_a_table_is_no_thumbnail(study: Study) -> None:
    index = BeautifulSoup((study.file.parents[1] / "index.html").read_text(), "html.parser")
    assert not index.select(".cards img")
    assert Image.open(io.BytesIO(png(study))).size == (28, 28)


def png(study: Study) -> bytes:
    """Return the first picture of the table."""
    soup = BeautifulSoup(study.file.read_text(), "html.parser")
    return base64.b64decode(soup.select_one(".draw-still img")["src"].partition(",")[2])
