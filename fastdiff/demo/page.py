"""The page: controls in a column, pictures, the strip of one picture's denoising, and the call that made them.

It needs NiceGUI, of which everything is served from this machine.
"""

from collections.abc import Callable

from ..io.extras import MissingPackageError
from ..kernels import FastdiffError
from .calls import python_call, shell_call
from .drawing import ALL, DEFAULT_CALLS, DEFAULT_SAMPLER, Choice, Drawn, draw
from .markup import STYLE, code, sheet, strip
from .models import Axis, Subject

try:
    from nicegui import app, events, run, ui  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise MissingPackageError(
        f"nicegui must be installed for the page: pip install 'fastdiff-triton[demo]' ({error})"
    ) from error

COUNTS = [1, 4, 9, 16, 25, 36, 64]
MOST_CALLS, MOST_GUIDANCE, MOST_SEED = 100, 8.0, 2**31 - 1
NO_LABEL, EVERY_LABEL = -1, -2  # beside the numbers of the classes
PRIOR = ""  # beside the names of mixtures
SHOWN_INDEX = "(event) => { const k = event.target.dataset.index; if (k !== undefined) emit(Number(k)); }"
COPY = "(event) => navigator.clipboard.writeText(event.target.closest('.call').querySelector('pre').innerText)"


class LocalSlider(ui.slider):
    """A slider whose value the server does not send back: what it sent late would move a slider that is being moved."""

    LOOPBACK = False


class Slider:
    """A slider with its name and its value above it."""

    def __init__(self, name: str, low: float, high: float, step: float, value: float, changed: Callable) -> None:
        with ui.element("div").classes("named") as self.element:
            with ui.element("div").classes("top"):
                ui.label(name)
                self.shown = ui.label(f"{value:g}").classes("value")
            self.slider = LocalSlider(min=low, max=high, step=step, value=value, on_change=self._changed)
            self.slider.props(f'aria-label="{name}"')
        self.changed = changed

    async def _changed(self) -> None:
        self.shown.text = f"{self.value:g}"
        await self.changed()

    @property
    def value(self) -> float:
        """The value, rounded to two places: the step of a slider is not exact."""
        return round(float(self.slider.value or 0.0), 2)


class Page:
    """One visitor's page.

    Args:
        names: the models to choose from, at least one.
        first: the one that is shown at first, if it is among them.
        subject_of: loads a model by its name.
    """

    def __init__(self, names: list[str], first: str, subject_of: Callable[[str], Subject]) -> None:
        self.names, self.first, self.subject_of = names, first if first in names else names[0], subject_of
        self.subject: Subject | None = None
        self.drawn: Drawn | None = None
        self.chosen = 0
        self.busy = self.stale = False
        self.following = True  # whether a change of a control draws

    # ------------------------------------------------------------------------------------------------ layout

    def build(self) -> None:
        """Lay the page out; the pictures come when the browser is connected."""
        ui.add_css(STYLE)
        ui.colors(primary="#3a6ea5")
        with ui.element("div").classes("page"):
            with ui.element("div").classes("controls"):
                self._controls()
            with ui.element("div").classes("results"):
                self._results()
        ui.timer(0.0, self.load_model, once=True)

    def _controls(self) -> None:
        with ui.element("div"):
            ui.label("fastdiff").classes("title")
            ui.label("One seed, one image: the call below the pictures draws them again.").classes("quiet")
        self.model = ui.select(self.names, value=self.first, label="Model", on_change=self.load_model)
        self.count = ui.select(COUNTS, value=16, label="Images", on_change=self.refresh)
        with ui.row().classes("w-full no-wrap items-center").style("gap: 8px"):
            self.seed = ui.number("Seed", value=0, min=0, max=MOST_SEED, precision=0, on_change=self.refresh)
            self.seed.props("outlined dense debounce=300").classes("grow")
            ui.button("Next seed", on_click=self.next_seed).props("unelevated no-caps")
        with ui.column().classes("w-full").style("gap: 14px") as self.diffusion:
            self.sampler = ui.select([DEFAULT_SAMPLER], value=DEFAULT_SAMPLER, label="Sampler", on_change=self.refresh)
            self.spacing = ui.select(["time"], value="time", label="Spacing of the steps", on_change=self.refresh)
            self.calls = Slider("Calls of the network", 2, MOST_CALLS, 1, DEFAULT_CALLS, self.refresh)
        with ui.column().classes("w-full").style("gap: 14px") as self.conditioning:
            self.label = ui.select(
                {NO_LABEL: "any"}, value=NO_LABEL, label="Class", on_change=self.refresh, with_input=True
            )
            self.guidance = Slider("Guidance", 1, MOST_GUIDANCE, 0.25, 1, self.refresh)
        with ui.column().classes("w-full").style("gap: 6px") as self.latent:
            with ui.row().classes("w-full items-center justify-between"):
                ui.label("Latent z").classes("section")
                ui.button("Reset", on_click=self.reset_latent).props("flat dense no-caps size=sm")
            self.mixture = ui.select({PRIOR: "its prior"}, value=PRIOR, label="Drawn from", on_change=self.refresh)
            self.sliders = ui.column().classes("w-full").style("gap: 2px")
        self.axes: list[tuple[Axis, Slider]] = []
        for element in (self.model, self.count, self.sampler, self.spacing, self.label, self.mixture):
            element.props("outlined dense options-dense").classes("w-full")

    def _results(self) -> None:
        with ui.element("div"):
            with ui.row().classes("items-center").style("gap: 10px; min-height: 28px"):
                self.status = ui.label("Loading the model").classes("quiet").props("role=status")
                self.spinner = ui.spinner(size="16px").classes("busy")
            self.sheet = ui.html("", sanitize=False).on("click", self.choose_image, js_handler=SHOWN_INDEX)
        with ui.element("div") as self.denoising:
            self.denoised = ui.label("").classes("section")
            self.strip = ui.html("", sanitize=False)
        self.python, self.shell = (self._call(name) for name in ("Python", "Shell"))

    def _call(self, name: str) -> ui.html:
        with ui.element("div"):
            ui.label(name).classes("section")
            with ui.element("div").classes("call").props(f'data-call="{name.lower()}"'):
                shown = ui.html("", sanitize=False)
                button = ui.button(icon="content_copy").props(f'flat dense size=sm aria-label="Copy {name}"')
                button.classes("copy").on("click", js_handler=COPY)
                button.on("click", lambda: ui.notify("Copied", timeout=900, position="bottom-right"))
        return shown

    # ------------------------------------------------------------------------------------------------ events

    async def load_model(self) -> None:
        """Load the chosen model, set the controls to what it takes, and draw."""
        self.spinner.classes(add="on")
        try:
            subject = await run.io_bound(self.subject_of, self.model.value)
        except FastdiffError as error:
            self.subject = None
            self._fail(error)
            return
        finally:
            self.spinner.classes(remove="on")
        if subject is None or subject.name != self.model.value:  # the server is ending, or another one was chosen
            return
        self.subject, self.following = subject, False
        self.diffusion.visible, self.latent.visible = bool(subject.samplers), subject.has_latent
        self.conditioning.visible = bool(subject.classes)
        _offer(self.sampler, subject.samplers, DEFAULT_SAMPLER)
        _offer(self.spacing, subject.spacings, "time")
        names = {NO_LABEL: "any", EVERY_LABEL: "all in turn"} | dict(enumerate(subject.classes))
        self.label.set_options(names, value=NO_LABEL)
        mixtures = {name: f"the mixture {name}" for name in subject.mixtures}
        self.mixture.set_options({PRIOR: "its prior"} | mixtures, value=next(iter(mixtures), PRIOR))
        self.mixture.visible = bool(mixtures)
        self.sliders.clear()
        with self.sliders:
            self.axes = [
                (axis, Slider(f"z[{axis.coordinate}]", -axis.limit, axis.limit, 0.1, 0.0, self.refresh))
                for axis in subject.axes
            ]
        self.following = True
        await self.refresh()

    async def next_seed(self) -> None:
        """Draw with the next seed."""
        self.seed.value = (int(self.seed.value or 0) + 1) % (MOST_SEED + 1)

    async def reset_latent(self) -> None:
        """Set the sliders of the latent to 0."""
        self.following = False
        for _, slider in self.axes:
            slider.slider.value = 0.0
        self.following = True
        await self.refresh()

    def choose_image(self, event: events.GenericEventArguments) -> None:
        """Show the denoising of the picture that was clicked."""
        self.chosen = int(event.args)
        self._show_pictures()

    async def refresh(self) -> None:
        """Draw what is chosen now. What was chosen while a drawing went on, but for the last, is skipped."""
        self.guidance.slider.set_enabled(self.label.value != NO_LABEL)
        self.stale = True
        if self.busy or not self.following or self.subject is None:
            return
        self.busy = True
        self.spinner.classes(add="on")
        try:
            while self.stale:
                self.stale, subject, choice = False, self.subject, self.choice()
                try:
                    drawn = await run.io_bound(draw, subject, choice)
                except FastdiffError as error:
                    self._fail(error)
                    continue
                if drawn is not None:  # None: the server is ending
                    self._show(subject, choice, drawn)
        finally:
            self.busy = False
            self.spinner.classes(remove="on")

    def choice(self) -> Choice:
        """Return what the controls say."""
        label = self.label.value
        return Choice(
            self.model.value if self.subject is None else self.subject.name, self.count.value, self.sampler.value,
            self.spacing.value, int(self.calls.value), int(self.seed.value or 0),
            None if label == NO_LABEL else ALL if label == EVERY_LABEL else label, self.guidance.value,
            tuple((axis.coordinate, slider.value) for axis, slider in self.axes), self.mixture.value or None,
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------ results

    def _show(self, subject: Subject, choice: Choice, drawn: Drawn) -> None:
        self.drawn, self.chosen = drawn, min(self.chosen, choice.n - 1)
        images = f"{choice.n} image{'s' if choice.n > 1 else ''}"
        calls = f", {drawn.calls} calls of the network" if drawn.calls else ""
        self.status.text = f"{images}{calls}, {drawn.seconds:.2f} s"
        self.status.classes(remove="error")
        self.python.content, self.shell.content = code(python_call(subject, choice)), code(shell_call(subject, choice))
        self._show_pictures()

    def _show_pictures(self) -> None:
        assert self.drawn is not None
        self.sheet.content, self.strip.content = sheet(self.drawn, self.chosen), strip(self.drawn, self.chosen)
        self.denoising.visible = bool(self.strip.content)
        self.denoised.text = f"How image {self.chosen} was denoised"

    def _fail(self, error: FastdiffError) -> None:
        """Show an error in place of the numbers; the pictures of the last drawing stay."""
        self.status.text = str(error)
        self.status.classes(add="error")


def _offer(select: ui.select, options: list[str], default: str) -> None:
    """Set the options of a choice; the value stays where it is one of them."""
    if options:
        select.set_options(options, value=select.value if select.value in options else default)


def serve(names: Callable[[], list[str]], first: str, subject_of: Callable[[str], Subject], port: int) -> None:
    """Serve the page on 127.0.0.1 until a signal ends it.

    Args:
        names: returns the models to choose from, each time that a page is opened.
        first: the model that a page shows at first.
        subject_of: loads a model by its name.
        port: the port, which must be free.
    """
    app.on_startup(lambda: print(f"fastdiff demo: http://127.0.0.1:{port} (Ctrl-C ends it)", flush=True))
    ui.run(
        lambda: Page(names(), first, subject_of).build(), host="127.0.0.1", port=port, title="fastdiff demo", dark=None,
        reload=False, show=False, show_welcome_message=False, binding_refresh_interval=None, favicon="🎲",
        timeout_graceful_shutdown=1,
    )  # fmt: skip
