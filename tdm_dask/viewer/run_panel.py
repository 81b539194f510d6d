"""Confirming what was chosen on the full data, with progress and a cancel, and saving it."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import panel as pn

from ..errors import InputError
from ..evaluation.cross_talk import cross_talk
from ..recipe.run import RecipeResult, run_recipe
from ..words import bytes_text, time_text
from .choices import Choices
from .engine import Look
from .job import Job, JobProgress
from .saving import save_recipe, save_shown
from .tab import Tab

POLL_MILLISECONDS = 250

# The last work on the full data by the folder that it writes to. It outlives the tab that began it, whose machine may
# have slept: a new tab takes it up, and two tabs do not write to one folder.
_jobs: dict[Path, tuple[Choices, Job]] = {}


def end_job(out: Path) -> None:
    """End the work that writes to a folder, as when its page is no longer served."""
    _, job = _jobs.pop(out, (None, None))
    if job is not None:
        job.end()


class RunPanel:
    """Buttons to run the recipe on the full data and to save, and how far that is.

    Parameters
    ----------
    page : Tab
    source : path or address or None
        The store that recipes name.
    out : Path
        Folder of what is saved.
    """

    def __init__(self, page: Tab, source: str | Path | None, out: Path) -> None:
        self._page, self.source, self._out = page, source, out
        self._job: tuple[Choices, Job] | None = None
        self._timer: Any = None
        self._done: tuple[Choices, Look] | None = None
        w, wide = pn.widgets, {"sizing_mode": "stretch_width"}
        self.confirm = w.Button(label="Confirm on the full data", color="primary", **wide)
        self.cancel = w.Button(label="Cancel", width=80, disabled=True)
        self.progress = pn.indicators.Progress(value=0, max=100, active=False, **wide)
        self.status = pn.pane.HTML("", **wide)
        self.save = w.Button(label="Save recipe, figures and numbers")
        self.download = w.FileDownload(callback=self._recipe_file, filename="recipe.toml", label="Download the recipe")
        for button, function in ((self.confirm, self._confirm), (self.cancel, self._cancel), (self.save, self._save)):
            page.on_click(button, function)
        if out in _jobs:
            self._follow()

    def panel(self) -> Any:
        """What Panel shows."""
        wide = {"sizing_mode": "stretch_width"}
        title = pn.pane.HTML("<h2>Confirm and save</h2>", margin=0)
        return pn.Column(
            title, pn.Row(self.confirm, self.cancel, **wide), self.progress, self.status,
            pn.FlexBox(self.save, self.download, **wide), **wide,
        )  # fmt: skip

    def changed(self) -> None:
        """What the full data gave holds for the same choices alone."""
        same = self._done is not None and self._done[0].same_masks(self._page.choices)
        self._page.set_full(self._done[1] if same and self._done is not None else None)

    def close(self) -> None:
        """Look no longer at what runs."""
        if self._timer is not None:
            self._timer.stop()
            self._timer = None

    def _named_source(self) -> str | Path:
        if self.source is None:
            raise InputError(
                "These counts are not those of a store as they are, and a recipe has to name one; write them with "
                "tdm.convert(counts, path), and view that store."
            )
        return self.source

    # The full data

    def _confirm(self) -> None:
        chosen = self._page.choices
        if not chosen.placed:
            raise InputError("There are no sites yet, so that there is no mask to confirm; place some first.")
        if self._out in _jobs and not _jobs[self._out][1].progress().ended:
            self._follow()
            raise InputError(
                "The full data are being worked on already, as another tab has asked; wait for the end of that, or "
                "cancel it."
            )
        recipe = chosen.recipe(self._named_source())
        self._out.mkdir(parents=True, exist_ok=True)
        save_recipe(chosen, self._named_source(), self._out)
        job = Job(lambda stage: run_recipe(recipe, self._out, overwrite=True, stage=stage))
        _jobs[self._out] = chosen, job.start()
        self._follow()

    def _follow(self) -> None:
        """Show how far the work on the full data is, until its end."""
        self._job = _jobs[self._out]
        self.confirm.disabled, self.cancel.disabled = True, False
        if self._timer is not None:
            self._timer.stop()
        self._timer = pn.state.add_periodic_callback(lambda: self._page.later(self._look), period=POLL_MILLISECONDS)

    def _cancel(self) -> None:
        if self._job is not None:
            self.status.object = "Cancelling: what has begun is let end ..."
            self._job[1].cancel()

    def _look(self) -> None:
        if self._job is None:
            return
        chosen, job = self._job
        progress = job.progress()
        self.status.object = html.escape(in_words(progress))
        stage = progress.current
        self.progress.active = not progress.ended
        share = stage.fraction if stage is not None else None
        self.progress.value = round(100 * share) if share is not None else (100 if progress.state == "done" else -1)
        if not progress.ended:
            return
        self._job = None
        if self._timer is not None:
            self._timer.stop()
            self._timer = None
        self.progress.param.update(active=False, value=100 if progress.state == "done" else 0)
        self.confirm.disabled, self.cancel.disabled = False, True
        if progress.state != "done" and _jobs.get(self._out) == (chosen, job):
            del _jobs[self._out]
        if progress.state == "done":
            self._done = chosen, look_of(chosen, progress.result)
            self.changed()
            what = "" if self._done[0].same_masks(self._page.choices) else ", for what was chosen when it began"
            said = f"Done in {time_text(progress.seconds)}: {_near(self._out)}/results.zarr{what}"
            self.status.object = html.escape(said)
        elif progress.state == "failed":
            self._page.say(progress.error or "The run failed.")

    # Files

    def _save(self) -> None:
        """Save what is chosen and what that gives, also where the page does not show it yet."""
        source, look, page = self._named_source(), self._page.look(), self._page
        chosen, out = page.choices, self._out
        name, image = page.current_detector, page.current_image()

        def write() -> list[Path]:
            written = [save_recipe(chosen, source, out)]
            full = look is not None and self._done is not None and look is self._done[1]
            where = "full data" if full else page.on_proxy
            shown = look
            if chosen.placed and (look is None or not look.choices.same_masks(chosen)):
                shown = page.engine.look(chosen)
            return written + save_shown(out, shown, page.engine.pacbed, {name: image}, page.engine.semi_angle, where)

        def say(written: list[Path]) -> None:
            names = ", ".join(sorted({path.name for path in written}))
            page.say(f"Saved {len(written)} files in {_near(out)}: {names}.", "note")

        page.work("Saving", write, say)

    def _recipe_file(self) -> Any:
        import io

        return io.BytesIO(self._page.choices.toml(self._named_source()).encode())


def _near(path: Path) -> str:
    """A path as it is from the working folder, if it is in there."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def look_of(choices: Choices, result: RecipeResult) -> Look:
    """The masks and images that a recipe gave, as the page shows them."""
    image, mask = result.images["image"], result.masks["mask"]
    kinds = list(choices.placed)
    image, mask = image.sel(template=kinds), mask.sel(template=kinds)
    table = cross_talk(image, result.masks["templates"].sel(template=kinds))
    return Look(choices, mask, image, table)


def in_words(progress: JobProgress) -> str:
    """How far a job is, in a line."""
    finished = ", ".join(f"{stage.name} ({time_text(stage.seconds)})" for stage in progress.finished)
    stage = progress.current
    if progress.state == "cancelled":
        return f"Cancelled; finished and kept: {finished or 'nothing yet'}."
    if progress.state == "failed":
        return f"Failed; finished and kept: {finished or 'nothing yet'}."
    parts = [finished] if finished else []
    if stage is not None:
        share = "" if stage.fraction is None else f" {100 * stage.fraction:.0f} %"
        rate = "" if stage.rate is None else f", {bytes_text(stage.rate)}/s"
        parts.append(f"{stage.name}{share}, {time_text(stage.seconds)}{rate}")
    return "; ".join(parts)
