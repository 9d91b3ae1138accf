"""A word of the field is explained where a page first uses it, and in a list at the page's end."""

import re

from bs4 import BeautifulSoup

from unlearnlib.report import glossary


def explained(html: str) -> tuple[BeautifulSoup, list[tuple[str, str]]]:
    soup = BeautifulSoup(html, "html.parser")
    return soup, glossary.explain(soup)


def test_a_word_is_marked_once_with_what_it_means():
    soup, words = explained(
        '<div class="markdown"><p>The gold model and <em>GKT</em>; gold again, GKT.</p>'
        "<ul><li>KLoM of <a href='x'>TOST</a></li></ul></div>"
    )
    marked = [word.contents[0] for word in soup.select(".word")]
    assert marked == ["gold model", "GKT", "KLoM"]  # a link leads elsewhere
    assert [word for word, _ in words] == ["GKT", "gold model", "KLoM"]
    for word in soup.select(".word"):
        assert word["tabindex"] == "0"
        tip = soup.find(id=word["aria-describedby"])
        assert tip["role"] == "tooltip" and tip.parent is word
    assert soup.select_one("p").get_text().startswith("The gold modela model trained from")


def test_only_prose_is_explained():
    soup, words = explained(
        '<h2>GKT</h2><div class="markdown"><p><code>GKT</code> <b>DeepInversion</b></p></div>'
        "<table><tr><td>GKT</td></tr></table><pre>gold</pre><figcaption>KL of gold</figcaption>"
    )
    assert [word for word, _ in words] == ["DeepInversion", "gold", "KL"]
    assert not soup.select("table .word, pre .word, code .word, h2 .word")


def test_a_part_of_another_word_is_none():
    _, words = explained(
        '<div class="markdown"><p>goldfish, KLx, gated, deck-like, PIF_2</p></div>'
    )
    assert words == []


def test_every_explanation_is_a_phrase_and_every_word_is_found():
    assert len(glossary.WORDS) >= 30
    for pattern, meaning in glossary.WORDS.items():
        word = re.sub(r"\(\?:(.*?)\)\?", "", pattern).split("|")[0].replace("[Aa]", "a")
        word = word.replace("s?", "")
        _, found = explained(f'<div class="markdown"><p>x {word} y</p></div>')
        assert found == [(word, meaning)], pattern
        assert not meaning.endswith(".")
