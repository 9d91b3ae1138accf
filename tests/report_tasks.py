"""A small executed study, as notebooks, for the tests of the report."""

import base64
import io
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

FRAME = """<div><style scoped>td {color: red}</style><table border="1" class="dataframe">
<thead><tr style="text-align: right;"><th></th><th>method</th><th>retain</th></tr></thead>
<tbody><tr><th>0</th><td>gkt</td><td>97.12</td></tr><tr><th>1</th><td>mm</td><td>-10.57</td></tr>
</tbody></table></div>"""
FORMULAS = r"""## The loss $\mathcal{L}$

Inline $\hat\theta_{-U} < \frac{1}{n}$ and $\operatorname*{arg\,min}_x f$, and displayed

$$\begin{aligned} a &= b \\ &= c \end{aligned}$$

\begin{align*} p &= q \end{align*}
"""


def png(*, size: int = 8) -> str:
    stream = io.BytesIO()
    Image.new("RGB", (size, size), "navy").save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def shown(data: dict[str, str], **metadata: object) -> NotebookNode:
    return new_output("display_data", data=data, metadata=metadata)


def code(source: str, *outputs: NotebookNode, tag: str | None = None) -> NotebookNode:
    metadata = {"tags": [tag]} if tag else {}
    return new_code_cell(source, outputs=list(outputs), metadata=metadata, execution_count=1)


def data_notebook() -> NotebookNode:
    cells = [
        new_markdown_cell(
            "# The data\n\nWhich *images*? See [the loss](12_gkt.ipynb#The-figures)."
        ),
        code("limit = 10  # images\nsource = 'idx'  # kept", tag="parameters"),
        code("limit = 500", tag="injected-parameters"),
        code("print('done')", new_output("stream", name="stdout", text="done\n")),
        code("warn()", new_output("stream", name="stderr", text="Traceback nonsense\n")),
    ]
    return new_notebook(cells=cells)


def gkt_notebook() -> NotebookNode:
    picture = {"image/png": png(), "text/plain": "<Figure>"}
    cells = [
        new_markdown_cell("# Gated transfer\n\nDoes it [forget](01_data.ipynb)?"),
        new_markdown_cell(FORMULAS),
        code("display(Math())", shown({"text/latex": r"$\sqrt{2}$", "text/plain": "Math"})),
        new_markdown_cell(
            "## The figures\n\n[later](30_later.ipynb) [code](../unlearnlib/zero_shot/gkt.py)"
        ),
        code("plot()", shown(picture, alt='A "rising" curve', caption="Over $3$ seeds.")),
        code("plot()", shown(picture, **{"image/png": {"alt": "Nested", "width": 80}})),
        code("plot()", shown(picture)),
        new_markdown_cell("## The figures\n\n### Table"),
        code("frame", shown({"text/html": FRAME, "text/plain": "frame"})),
    ]
    return new_notebook(cells=cells)


def write(root: Path, **notebooks: NotebookNode) -> None:
    """Lay out a project of which these notebooks were executed for `quick`."""
    folder = root / "reports" / "quick" / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    for stem, notebook in notebooks.items():
        nbformat.write(notebook, folder / f"{stem.removeprefix('n')}.ipynb")
