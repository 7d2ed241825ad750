"""What the Rounds tab does and shows: functions of (context, values), the grid of images, its keys.

May import: the app's neighbours.
"""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any, cast

from PIL import Image

from visfeedback.app import board_html as html
from visfeedback.app.board_sessions import Sessions, wish
from visfeedback.app.context import Context
from visfeedback.app.rounds import Round, Rounds, Session
from visfeedback.plugins import InputError
from visfeedback.types.records import Sample

SIDE = 1024
"""pixels of the longer side on the page; the store keeps the whole image"""
LOSSLESS = 256
"""images up to this side (px) are sent as they are"""
NONE = "No session yet: say what to draw, and begin."
LEARNED = "A LoRA that learned from this session drew these images, a folder for --adapter and for stock diffusers:"
KEYS = "Keys: 1 to 9 like, Shift with 1 to 9 dislike, n next round."

GRID = """
const typing = (target) => target.closest?.('input, textarea, select, [contenteditable]');
const next = () => {
  const count = element.querySelectorAll('[data-place][data-mark="1"]').length;
  const pressed = (place, mark) => {
    const button = element.querySelector(`[data-place="${place}"][data-mark="${mark}"]`);
    return button?.getAttribute('aria-pressed') === 'true';
  };
  const marks = Array.from({ length: count }, (_, place) => pressed(place, 1) ? 1 : pressed(place, -1) ? -1 : 0);
  const button = element.querySelector('.next');
  button.disabled = true;
  trigger('next', { marks });
  // Where nothing came of it, after an error or a request that was lost, it can be pressed again.
  const look = setInterval(() => {
    if (!button.isConnected) clearInterval(look);
    else if (!document.querySelector('#rounds-said .busy')) {
      button.disabled = false;
      clearInterval(look);
    }
  }, 4000);
};
const press = (place, mark) => {
  const [up, down] = [1, -1].map((m) => element.querySelector(`[data-place="${place}"][data-mark="${m}"]`));
  if (!up) return;
  const chosen = mark === 1 ? up : down;
  const wanted = chosen.getAttribute('aria-pressed') === 'true' ? 0 : mark;
  up.setAttribute('aria-pressed', String(wanted === 1));
  down.setAttribute('aria-pressed', String(wanted === -1));
  trigger('mark', { place, mark: wanted });
};
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-place]');
  if (button) press(Number(button.dataset.place), Number(button.dataset.mark));
  else if (event.target.closest('.next')) next();
});
document.addEventListener('keydown', (event) => {
  if (!element.isConnected || element.offsetParent === null) return;
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
  const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code);
  if (digit) press(Number(digit[1]) - 1, event.shiftKey ? -1 : 1);
  else if (event.key === 'n' && element.querySelector('.next:enabled')) next();
  else return;
  event.preventDefault();
});
"""
STYLE = """<style>
.vf-round { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(45%, 14rem), 1fr)); gap: 1rem; margin: 0;
  padding: 0; list-style: none; }
.vf-round img { display: block; width: 100%; height: auto; border-radius: .6rem; background: var(--plain-pale); }
.vf-round img.pixelated { image-rendering: pixelated; }
.vf-round .marks { display: flex; gap: .5rem; margin-top: .5rem; }
.vf-page .vf-round button { flex: 1; min-height: 2.75rem; padding: .3rem .5rem; font: inherit; color: var(--ink);
  cursor: pointer; background: var(--plain-pale); border: 2px solid transparent; border-radius: .5rem; }
.vf-page .vf-round button:focus-visible { outline: 3px solid var(--tuned); outline-offset: 2px; }
.vf-page .vf-round button[data-mark="1"][aria-pressed="true"] {
  background: var(--good-pale); border-color: var(--good); }
.vf-page .vf-round button[data-mark="-1"][aria-pressed="true"] {
  background: var(--bad-pale); border-color: var(--bad); }
.vf-page .next { width: 100%; min-height: 3rem; margin-top: 1rem; font: inherit; font-weight: 600; color: #fff;
  background: #0b6b5b; border: 0; border-radius: .6rem; cursor: pointer; position: sticky; bottom: .5rem; }
.vf-page .next:disabled { opacity: .6; cursor: wait; }
.vf-round kbd { font: .8em ui-monospace, monospace; opacity: .75; }
.vf-page .learned { margin-top: 1.2rem; }
#rounds-said:has(.busy) { min-height: 5rem; }
#rounds-said .busy { position: fixed; left: 1rem; right: 1rem; bottom: .5rem; z-index: 20; margin: 0;
  text-align: center; box-shadow: 0 0 1rem #0003; }
@media (max-width: 40rem) { .vf-page kbd { display: none; } }
</style>"""
NEXT = '<button type="button" class="next">Next round <kbd>n</kbd></button>'


# what the buttons do


def sessions(context: Context) -> Sessions:
    """InputError where nobody draws."""
    if not available(context):
        raise InputError(
            "nothing is drawn in rounds here; start with: visfeedback collect --model shapes:sd --store URL"
        )
    handed = cast(Rounds, context.rounds)
    return context.extras.setdefault("sessions", Sessions(context.store, handed))


def available(context: Context) -> bool:
    """Whether anybody was handed in who draws rounds."""
    return bool(getattr(context.rounds, "engines", None))


def begin(context: Context, judge: str, said: Callable[[str], None], **values: Any) -> Session:
    return sessions(context).start(judge, wish(values), said)


def mark(context: Context, judge: str, session: str, number: Any, place: Any, value: Any) -> str:
    """Save a mark; returns how the round stands, in words."""
    if not all(isinstance(one, int) for one in (number, place, value)):
        raise InputError("a mark needs the numbers of a round, an image, and 1, 0 or -1")
    return standing(sessions(context).mark(judge, session, number, place, value), number)


def follow(
    context: Context, judge: str, session: str, number: Any, marks: Any,
    said: Callable[[str], None] = lambda text: None,
) -> Session:  # fmt: skip
    """The next round. ``marks``: those on the screen, for one that was just set may still be on its way."""
    if not isinstance(number, int) or not isinstance(marks, list) or not all(isinstance(one, int) for one in marks):
        raise InputError("the next round needs the number of this one and a mark for each of its images")
    found = sessions(context)
    before = found.find(judge, session).at(number).marks
    if len(marks) != len(before):
        raise InputError(f"{len(marks)} marks for {len(before)} images; reload the page")
    for place, value in enumerate(marks):
        if value != before[place]:
            found.mark(judge, session, number, place, value)
    return found.next(judge, session, number, said)


def standing(session: Session, number: int) -> str:
    """What counts for the round after this one."""
    marks = [one for past in session.way(number) for one in past.marks]
    liked, disliked = marks.count(1), marks.count(-1)
    if not marks.count(0) < len(marks):
        return f"{session.at(number).title}: nothing is liked yet; the next round would be drawn freely. {KEYS}"
    return f"{session.at(number).title}: {liked} liked and {disliked} disliked steer the next round. {KEYS}"


# what is shown


def grid(context: Context, session: Session, number: int) -> str:
    """The images of a round with their buttons."""
    found, samples = session.at(number), sessions(context).samples(session, number)
    items = [_item(place, Path(sample.path), sample.prompt, found) for place, sample in enumerate(samples)]
    blur = ' class="vf-blur"' if context.settings.blur else ""
    learned = _learned(context.model, samples[0]) if samples else ""
    return html.page(f'<div{blur}><ol class="vf-round">{"".join(items)}</ol></div>', NEXT, learned)


def _learned(model: str, sample: Sample) -> str:
    """Where the LoRA is that drew a round, and how to use it elsewhere; empty where the model drew by itself."""
    if not sample.adapter:
        return ""
    command = ("visfeedback", "generate", "--model", model, "--adapter", sample.adapter, "--prompts", sample.prompt)
    code = html.code(f"{shlex.join(command)} --per-prompt 4 --seed 0 --out DIR")
    return f'<div class="learned">{html.words(LEARNED)}{code}</div>'


def _item(place: int, path: Path, prompt: str, found: Round) -> str:
    image = html.opened(path)
    small = image is not None and max(image.size) <= LOSSLESS
    picture = f'<img src="{uri(image)}" alt="{escape(prompt)}, image {place + 1}"' if image else "<p>(missing)</p>"
    picture += f"{' class=pixelated' if small else ''}>" if image else ""
    buttons = "".join(
        f'<button type="button" data-place="{place}" data-mark="{value}" '
        f'aria-pressed="{str(found.marks[place] == value).lower()}" aria-label="{word} image {place + 1}">'
        f"{word} <kbd>{keys}{place + 1}</kbd></button>"
        for value, word, keys in ((1, "Like", ""), (-1, "Dislike", "⇧"))
    )
    return f'<li class="card">{picture}<div class="marks">{buttons}</div></li>'


def uri(image: Image.Image) -> str:
    """Pixels for the page, without metadata: small ones as they are, large ones as JPEG of at most 1024 px."""
    image, buffer = image.convert("RGB"), io.BytesIO()
    if max(image.size) <= LOSSLESS:
        return "data:image/png;base64," + base64.b64encode(html.png(image)).decode()
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    image.save(buffer, "JPEG", quality=92)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def history(session: Session) -> list[tuple[str, int]]:
    """Rounds to go back to, with what was liked in each."""
    return [(f"{one.title} · {one.marks.count(1)} liked", one.number) for one in session.rounds]
