"""The command that runs a study: ``reproduce``."""

from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from ..checkpoint import RUNS
from ..studies import STUDIES

Name = tyro.conf.Positional


@dataclass
class Reproduce:
    """Train the small models of a study, measure, and write its document, numbers and pictures; it can be resumed."""

    study: Name[str] = "schedules"
    """Name of the study."""
    out: Path = Path("docs")
    """Folder of the document."""
    runs: Path | None = None
    """Folder of the trained models, which are not trained again; by default runs/STUDY, or runs/diffusevae, which
    speed-up and restoration share."""
    steps: int | None = None
    """Optimiser steps per model, instead of the study's."""
    seeds: int | None = None
    """Seeds per setting, instead of the study's."""
    draws: int | None = None
    """Draws per held-out image, instead of the study's."""
    workers: int = 2
    """Models that are trained at a time, one thread each."""

    def run(self) -> int:
        """Run the study."""
        if self.study not in STUDIES:
            raise ValueError(f"reproduce: unknown study {self.study!r}; allowed: {', '.join(STUDIES)}")
        wanted = {name: getattr(self, name) for name in ("steps", "seeds", "draws") if getattr(self, name) is not None}
        for name, value in (wanted | {"workers": self.workers}).items():
            if value < 1:
                raise ValueError(f"reproduce: {name} is {value}; allowed: at least 1")
        study = STUDIES[self.study]
        if self.draws is not None and not study.draws:
            raise ValueError(f"reproduce: draws is {self.draws} for {self.study}, which takes no bound; allowed: none")
        study.reproduce(self.out, self.runs or RUNS / study.folder, replace(study.budget, **wanted), self.workers)
        return 0
