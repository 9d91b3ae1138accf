"""Words of the field, each explained once: where a page first uses one, and below the page.

A reader meets the explanation by pointing at the word or reaching it by keyboard, and on paper in
the list at the page's end.
"""

import re
from collections.abc import Iterator

from bs4 import BeautifulSoup, NavigableString, Tag

WORDS = {  # as pages write it, a regular expression without groups: what it means
    "gold(?: models?)?": "a model trained from the start without what is to be forgotten; what "
    "unlearning is measured against",
    "decks?": "the two sets of slides that this study started from",
    "retain accuracy": "share of test images of the classes that stay that are named right",
    "forget accuracy": "share of test images of the forgotten classes that are still named so",
    "self accuracy": "share of the removed training items that are named right",
    "zero-shot": "with the trained model alone, without any of its data",
    "M-M noise": "error minimisation-maximisation noise (arXiv 2201.05629): learnt noise that stands "
    "for a class, and noise that undoes one",
    "GKT": "gated knowledge transfer (arXiv 2201.05629): a student learns from a teacher on generated "
    "images, of which a gate lets none of the forgotten class pass",
    "DeepInversion": "images optimised so that a model sees a class in them and its BatchNorm layers "
    "see familiar statistics (arXiv 1912.08795)",
    "pseudo-batch(?:es)?": "one batch of generated images, with one step of the generator and ten of "
    "the student",
    "gate": "what keeps images from the student to which the teacher gives the forgotten class a "
    "noticeable probability",
    "[Aa]ttention maps?": "where a layer is active: its activations squared and averaged over channels",
    "KL": "Kullback-Leibler divergence, in nats: how far one distribution of answers is from another",
    "JS": "Jensen-Shannon divergence, in nats: a symmetric distance of two distributions of answers",
    "BatchNorm": "layers that normalise what they see by statistics of the batch, or in evaluation "
    "mode by running means of earlier ones",
    "influence functions?": "the first-order change of a model's parameters when items are removed "
    "from its training (Koh and Liang 2017)",
    "Gauss-Newton(?: matrix)?": "the curvature of the loss without the part that can be negative",
    "damping": "a number added to the diagonal of the curvature, so that it can be inverted",
    "coherent": "of one class, as against drawn at random from all",
    "PBRF": "proximal Bregman response function: what influence functions estimate in networks that "
    "have not converged (Bae et al. 2022)",
    "PIF": "partial influence function: an update of some of the parameters only",
    "FIF": "freezing influence function: the other parameters held where they are",
    "GIF": "generalised influence function: the other parameters respond to the update of the chosen "
    "ones",
    "RIF": "rescaled influence function: the update of each item scaled by its leverage",
    "LDS|linear datamodelling score": "rank correlation of what an attribution foretells with what "
    "training on random parts of the data does",
    "TRAK": "attribution through randomly projected gradients (Park et al. 2023)",
    "KLoM": "Kullback-Leibler divergence of margins (Georgiev et al. 2024): how far the margins of "
    "unlearned models are from those of gold, image by image, over ensembles",
    "U-LiRA": "a likelihood-ratio attack with shadow models: how often it tells unlearned from gold",
    "AIN": "anamnesis index: mini-batches that an unlearned model takes to learn again, over gold's",
    "ToW": "tug of war: one number from the three accuracies' differences to gold, 1 the best",
    "TOST": "two one-sided tests: show that a difference lies within a margin, not that none was seen",
    "Holm(?:'s correction)?": "p-values corrected for how many tests are made",
    "relearn(?:ing)? time": "mini-batches until a model that is taught what it forgot knows it again",
    "decoys?": "models made to fool a measure: the original, or a cheat",
}
_WORD = re.compile(
    r"(?<![\w-])(?:" + "|".join(f"(?P<w{n}>{word})" for n, word in enumerate(WORDS)) + r")(?![\w-])"
)
_LEAVE = [
    "a",
    "code",
    "pre",
    "h1",
    "h2",
    "h3",
    "h4",
    "math",
    "summary",
    "button",
    "script",
    "style",
]


def explain(soup: BeautifulSoup) -> list[tuple[str, str]]:
    """Mark where each word of the field is first used in a page's prose.

    Args:
        soup: the page's body, which is changed.

    Returns:
        the words of the page and what they mean, by alphabet.
    """
    met: dict[int, str] = {}
    for text in _prose(soup):
        parts, end = [], 0
        for found in _WORD.finditer(text):
            number = int(found.lastgroup[1:])
            if number in met:
                continue
            met[number] = found[0]
            parts += [NavigableString(text[end : found.start()]), _marked(soup, found[0], number)]
            end = found.end()
        if parts:
            text.replace_with(*parts, NavigableString(text[end:]))
    meanings = list(WORDS.values())
    return sorted(((word, meanings[n]) for n, word in met.items()), key=lambda w: w[0].casefold())


def _prose(soup: BeautifulSoup) -> Iterator[NavigableString]:
    for block in soup.select(".markdown p, .markdown li, figcaption"):
        for text in list(block.find_all(string=True)):
            inside = any(parent.name in _LEAVE for parent in text.parents)
            if not inside and text.find_parent(["p", "li", "figcaption"]) is block:
                yield text


def _marked(soup: BeautifulSoup, word: str, number: int) -> Tag:
    """Wrap a word with its explanation, which pointing and the keyboard show."""
    label = f"meaning-{number}"
    holder = soup.new_tag(
        "span", attrs={"class": "word", "tabindex": "0", "aria-describedby": label}, string=word
    )
    tip = soup.new_tag("span", attrs={"class": "meaning", "role": "tooltip", "id": label})
    tip.string = list(WORDS.values())[number]
    holder.append(tip)
    return holder
