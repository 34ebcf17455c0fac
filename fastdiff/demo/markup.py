"""The HTML of the page's pictures, and its style: pixels without smoothing, at whole factors, light and dark."""

import base64
import html

from torch import Tensor

from ..io.image_files import png_bytes
from .drawing import Drawn, Frame

PICTURES_WIDTH, STRIP_SIDE = 640, 56  # pixels of the page: of the sheet of pictures at most, of a picture in the strip

STYLE = """
:root { --edge: #d9dce1; --quiet: #667085; --ground: #f7f8fa; --panel: #ffffff; --ink: #1d2430; }
body.body--dark { --edge: #323945; --quiet: #98a2b3; --ground: #14171c; --panel: #1c2027; --ink: #e6e9ee; }
body, .nicegui-content { background: var(--ground); color: var(--ink); font-family: system-ui, sans-serif; }
.page { max-width: 1180px; margin: 0 auto; width: 100%; display: flex; gap: 36px; align-items: flex-start;
  flex-wrap: wrap; }
.controls { width: 272px; flex: none; display: flex; flex-direction: column; gap: 14px; }
.results { flex: 1; min-width: 320px; display: flex; flex-direction: column; gap: 22px; }
.title { font-size: 22px; font-weight: 600; letter-spacing: -0.01em; line-height: 1.2; }
.quiet { color: var(--quiet); font-size: 13px; }
.section { font-size: 13px; font-weight: 600; margin-bottom: 6px; }
.named { width: 100%; } .named .top { display: flex; justify-content: space-between; font-size: 13px; }
.named .top .value { color: var(--quiet); font-variant-numeric: tabular-nums; }
.error { color: #b42318; } body.body--dark .error { color: #f97066; }
.sheet { display: grid; gap: 4px; justify-content: start; }
.sheet img, .strip img { image-rendering: pixelated; display: block; background: var(--edge); }
.sheet img { cursor: pointer; max-width: 100%; height: auto; }
.sheet img.chosen { outline: 2px solid var(--q-primary); }
.strip { display: grid; gap: 4px; justify-content: start; align-items: center; overflow-x: auto; }
.strip .label { color: var(--quiet); font-size: 12px; padding-right: 8px; white-space: nowrap; }
.strip .head { color: var(--quiet); font-size: 12px; text-align: center; }
.call { position: relative; width: 100%; }
.call pre { margin: 0; padding: 12px 44px 12px 14px; background: var(--panel); border: 1px solid var(--edge);
  border-radius: 6px; font: 12.5px/1.5 ui-monospace, monospace; overflow-x: auto; white-space: pre-wrap; }
.call .copy { position: absolute; top: 6px; right: 6px; color: var(--quiet) !important; }
.busy { opacity: 0; transition: opacity 0.1s; } .busy.on { opacity: 1; transition: opacity 0.1s 0.4s; }
"""


def sheet(drawn: Drawn, chosen: int) -> str:
    """Return the pictures as HTML; each knows its number, ``data-index``, and the chosen one has a line around it."""
    count, width = len(drawn.images), drawn.images.shape[-1]
    columns = max(1, round(count**0.5))
    factor = max(1, min(PICTURES_WIDTH // (columns * width), 240 // width or 1))
    parts = [
        _image(image, factor, f"image {k}", f' data-index="{k}"' + (' class="chosen"' if k == chosen else ""))
        for k, image in enumerate(drawn.images)
    ]
    return _boxes("sheet", f"repeat({columns}, minmax(0, max-content))", parts)


def strip(drawn: Drawn, chosen: int) -> str:
    """Return the denoising of one picture as HTML, a column for each frame; "" for a VAE.

    Of a restoration model the first column is the degraded image.
    """
    if not drawn.frames:
        return ""
    side = max(drawn.images.shape[-2:])
    factor = max(1, STRIP_SIDE // side)
    rows = [[_text("calls", "label")], [_text("z<sub>t</sub>", "label")], [_text("x̂", "label")]]
    if drawn.cond is not None:
        cond = drawn.cond[min(chosen, len(drawn.cond) - 1)]
        size = factor * drawn.images.shape[-2] // cond.shape[-2]
        rows[0].append(_text("degraded", "head"))
        rows[1].append(_image(cond, max(1, size), "degraded image"))
        rows[2].append("<span></span>")
    for frame in drawn.frames:
        for row, cell in zip(rows, _column(frame, chosen, factor), strict=True):
            row.append(cell)
    return _boxes("strip", f"repeat({len(rows[0])}, max-content)", [cell for row in rows for cell in row])


def _column(frame: Frame, chosen: int, factor: int) -> list[str]:
    """Return a column of the strip: the number of calls, z_t and x_hat."""
    k = min(chosen, len(frame.z_t) - 1)
    calls = f"after {frame.calls} calls"
    images = [_image(frame.z_t[k], factor, f"z_t {calls}"), _image(frame.x_hat[k], factor, f"x_hat {calls}")]
    return [_text(str(frame.calls), "head"), *images]


def code(text: str) -> str:
    """Return a call as HTML."""
    return f"<pre>{html.escape(text)}</pre>"


def _boxes(kind: str, columns: str, parts: list[str]) -> str:
    return f'<div class="{kind}" style="grid-template-columns: {columns}">{"".join(parts)}</div>'


def _text(text: str, kind: str) -> str:
    return f'<span class="{kind}">{text}</span>'


def _image(image: Tensor, factor: int, name: str, attributes: str = "") -> str:
    """Return an image uint8 [C, H, W] as HTML, enlarged by the browser."""
    data = base64.b64encode(png_bytes(image)).decode()
    size = f'width="{image.shape[2] * factor}" height="{image.shape[1] * factor}"'
    return f'<img src="data:image/png;base64,{data}" {size} alt="{name}"{attributes}>'
