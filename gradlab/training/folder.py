"""A run is one folder, which any number of interrupted attempts fill with the same bits.

What lies in the folder:

- ``spec.json``: the spec with every default; ``environment.json``: versions and machine;
- ``log.csv``: one row per epoch; ``gradient_norms.csv`` where asked for; ``layers.csv`` of
  stochastic layers;
- ``checkpoint.safetensors`` after every epoch, and the previous one;
- of pruned networks at the end ``log_alpha.csv``, a histogram of each layer, and
  ``kept_inputs.csv``, the weights that are kept of every pixel;
- at the end ``weights.safetensors``, ``weights-ema.safetensors``, ``summary.json``.
"""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gradlab import _provenance, variational
from gradlab.training import checkpoint, files
from gradlab.training.checkpoint import Checkpoint
from gradlab.training.evaluation import evaluate
from gradlab.training.files import FileProblem
from gradlab.training.loop import Diverged, Moment, Progress, train_epoch
from gradlab.training.setup import Datasets, Setup, initialize, noise_of, prepare
from gradlab.training.spec import TrainingSpec, differences
from gradlab.training.state import Row, State
from gradlab.training.summary import summarize
from gradlab.training.uncertainty import predictions
from gradlab.training.weights import EMA_FILE, FILE, save_weights
from gradlab.variational.complaints import complaints

LOG, NORMS, LAYERS = "log.csv", "gradient_norms.csv", "layers.csv"
SUMMARY, LOG_ALPHA, KEPT = "summary.json", "log_alpha.csv", "kept_inputs.csv"
SPEC, ENVIRONMENT = "spec.json", "environment.json"
# A sweep's results lie in folders of the same kind.
_FOREIGN = "store.sqlite"


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run; the message says what is kept."""


@dataclass(frozen=True)
class TrainingResult:
    """What came of a run.

    Attributes:
        folder: where it lies.
        epochs: one row per epoch, see :mod:`gradlab.training.loop`.
        final: the summary, see :mod:`gradlab.training.summary`.
        weights: the weights of the last epoch done.
        finished: whether all epochs are done.
        trained: epochs that this call trained; 0 if the run was finished before.
        notes: what to know about it, one sentence each.
        layers: of stochastic layers, one row per epoch and layer.
    """

    folder: Path
    epochs: list[Row]
    final: dict[str, Any]
    weights: Path
    finished: bool
    trained: int
    notes: list[str] = field(default_factory=list)
    layers: list[Row] = field(default_factory=list)


def run(
    spec: TrainingSpec,
    folder: str | Path,
    *,
    progress: Progress | None = None,
    stop_after: int | None = None,
    datasets: Datasets | None = None,
) -> TrainingResult:
    """Train, or go on with what the folder holds.

    A run that was interrupted or killed goes on behind its last checkpoint. On a processor, with
    the same number of threads, it ends with the bits of one that never was; kernels of a GPU add
    in no fixed order, so there only the order of images and all noise are the same.

    Args:
        spec: what to train.
        folder: the run's own; made if it does not exist.
        progress: called with a :class:`Moment` now and then.
        stop_after: stop behind this epoch, as if interrupted there; its weights are kept as
            ``weights-epoch-0005.safetensors``.
        datasets: images to use instead of those that the spec names.

    Raises:
        SpecError: the spec is wrong.
        FileProblem: the folder belongs to another spec or run, or cannot be written.
        Diverged: the loss is no longer a number.
        Interrupted: Ctrl-C; the epochs done are kept.
    """
    folder = Path(folder)
    if stop_after is not None and stop_after < 1:
        raise ValueError(f"stop_after is {stop_after}: give an epoch of at least 1.")
    with _threads(spec.threads):
        # neither a wrong spec nor weights that do not fit leave a folder behind
        setup, state = prepare(spec, datasets)
        with _chosen_convolutions(setup.device):
            fresh = not folder.exists()
            if fresh:
                initialize(setup, state)
            with _lock(folder):
                notes = _begin(setup, state, folder, fresh)
                return _Run(setup, state, folder, progress or _silent, notes).go(stop_after)


def _begin(setup: Setup, state: State, folder: Path, initialized: bool) -> list[str]:
    """Bring a fresh state to where the folder's run is; what to know about it."""
    found = checkpoint.read(folder)
    notes: list[str] = [] if found is None else list(found.facts["notes"])
    if found is None:
        if not initialized:
            initialize(setup, state)
    else:
        _refuse_another_spec(found, setup.spec, folder)
        _refuse_other_images(found, setup, folder)
        checkpoint.restore(state, found)
        notes += [f"{note.rstrip('.')}: going on from epoch {state.epoch}." for note in found.notes]
        notes += _changes(found, setup)
    _write_facts(folder, setup)
    return notes


def _silent(moment: Moment) -> None:
    pass


@dataclass
class _Run:
    """A run at work."""

    setup: Setup
    state: State
    folder: Path
    progress: Progress
    notes: list[str]
    saved: int = 0  # the epoch of the last checkpoint

    def go(self, stop_after: int | None) -> TrainingResult:
        """Train what is missing, up to the end or ``stop_after``."""
        setup, state = self.setup, self.state
        epochs, before = setup.spec.loop.epochs, state.epoch
        self.saved = before
        last = epochs if stop_after is None else min(stop_after, epochs)
        for note in list(self.notes):
            self._tell(note)
        if before:
            self._write_log(state.rows)  # a killed run may have left an older one
        try:
            self._train(last)
            finished = state.epoch >= epochs
            weights = self._finish() if finished else self._keep(state.epoch)
            final = self._summary() if finished else summarize(state.rows, setup)
        except KeyboardInterrupt:
            raise Interrupted(self._interrupted()) from None
        except Diverged as diverged:
            self._write_log(diverged.rows)
            raise Diverged(
                f"{diverged}: {self._last_good()}; try a lower lr, or loop.clip.",
                diverged.epoch, diverged.step, diverged.rows,
            ) from None  # fmt: skip
        return TrainingResult(
            self.folder, state.rows, final, weights, finished, state.epoch - before, self.notes,
            state.layers,
        )  # fmt: skip

    def _train(self, last: int) -> None:
        setup, state = self.setup, self.state
        spec, phase, gradients = setup.spec, None, None
        while state.epoch < last:
            epoch = state.epoch + 1
            entry, _ = setup.phase(epoch)
            if gradients is None or entry != phase:
                phase, gradients = entry, setup.gradients(entry, state.model, self._note)
            row = train_epoch(state, setup, gradients, self.progress)
            for sentence in complaints(state.model):
                if sentence not in self.notes:
                    self._note(sentence)
            if epoch in spec.checkpoint.keep:
                self._keep(epoch)
            if epoch % spec.checkpoint.every == 0 or epoch == last:
                kept = f"the checkpoint of epoch {self.saved} is intact" if self.saved else ""
                checkpoint.write(self.folder, state, self._facts(), kept)
                self.saved = epoch
            self._write_log(state.rows)
            steps = setup.batches.steps
            self.progress(Moment(epoch, spec.loop.epochs, steps, steps, row))

    def _facts(self) -> dict[str, Any]:
        setup = self.setup
        return {
            "spec": setup.spec.identity(),
            "spec_digest": setup.spec.digest(),
            "data": setup.datasets.records,
            "random": {"seed": setup.spec.seed, "streams": "SeedSequence(seed, (stream, epoch))"},
            "notes": self.notes,
            "best": summarize(self.state.rows, setup)["best"],
            **_place(setup),
        }

    def _note(self, sentence: str) -> None:
        self.notes.append(sentence)
        self._tell(sentence)

    def _tell(self, sentence: str) -> None:
        setup = self.setup
        epoch = min(self.state.epoch + 1, setup.spec.loop.epochs)
        self.progress(Moment(epoch, setup.spec.loop.epochs, 0, setup.batches.steps, note=sentence))

    def _keep(self, epoch: int) -> Path:
        path = self.folder / f"weights-epoch-{epoch:04d}.safetensors"
        save_weights(self.state.model, path, self._weight_facts())
        return path

    def _finish(self) -> Path:
        state, folder = self.state, self.folder
        save_weights(state.model, folder / FILE, self._weight_facts())
        if state.average is not None:
            facts = {**self._weight_facts(), "averaged": True}
            save_weights(state.average.model, folder / EMA_FILE, facts)
        if self.setup.spec.variational is not None:
            about = {LOG_ALPHA: variational.log_alpha_histogram(state.model),
                     KEPT: variational.kept_inputs(state.model)}  # fmt: skip
            for name, rows in about.items():
                if rows:
                    files.write(folder / name, table(rows))
        return folder / FILE

    def _summary(self) -> dict[str, Any]:
        """The summary of a finished run, with the test set where it is not yet known."""
        final = summarize(self.state.rows, self.setup)
        test = self.setup.datasets.test
        if test is not None:
            final["test"] = evaluate(self.state.model, test, details=True)
            if self.state.average is not None:
                final["ema_test"] = evaluate(self.state.average.model, test, details=True)
        noise = self.setup.spec.variational
        if noise is not None:
            judged = test or self.setup.datasets.evaluation
            final["predictions"] = predictions(
                self.state.model, judged, noise.evaluation_samples, self.setup.spec.seed
            )
        final["notes"] = self.notes
        files.write_json(self.folder / SUMMARY, final)
        return final

    def _weight_facts(self) -> dict[str, Any]:
        """What it takes to use the weights without the data."""
        train, spec = self.setup.datasets.train, self.setup.spec
        return {
            "model": self.setup.model,
            **({} if spec.variational is None else {"variational": noise_of(spec)}),
            "data": {
                "name": train.name, "classes": list(train.classes), "mean": list(train.mean),
                "std": list(train.std), "image_shape": list(train.image_shape),
                "validation": self.setup.spec.data.validation, "seed": self.setup.spec.seed,
            },
            "name": self.setup.spec.name,
            "epoch": self.state.epoch,
            "epochs": self.setup.spec.loop.epochs,
            "spec_digest": self.setup.spec.digest(),
            "gradlab": _provenance.code(),
        }  # fmt: skip

    def _write_log(self, rows: list[Row]) -> None:
        files.write(self.folder / LOG, table(rows))
        if self.state.norms:
            files.write(self.folder / NORMS, table(self.state.norms))
        if self.state.layers:
            files.write(self.folder / LAYERS, table(self.state.layers))

    def _interrupted(self) -> str:
        if not self.saved:
            return "interrupted before the first checkpoint: the same command starts again."
        return (f"interrupted: {self.saved} of {self.setup.spec.loop.epochs} epochs are kept, the "
                "same command continues.")  # fmt: skip

    def _last_good(self) -> str:
        if not self.saved:
            return "there is no checkpoint before it"
        return f"the checkpoint of epoch {self.saved} is in {self.folder / checkpoint.FILE}"


def table(rows: list[Row]) -> bytes:
    """Rows as CSV; numbers keep all their digits, and what is missing stays empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _cell(value) for key, value in row.items()})
    return stream.getvalue().encode()


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else value


def _write_facts(folder: Path, setup: Setup) -> None:
    files.write_json(folder / SPEC, setup.spec.model_dump(mode="json"))
    environment = {**_provenance.environment(), **_place(setup), "data": setup.datasets.records}
    files.write_json(folder / ENVIRONMENT, environment)


def _place(setup: Setup) -> dict[str, Any]:
    """Where a run is made, as far as its bits depend on it."""
    return {
        "device": setup.device,
        "threads": torch.get_num_threads(),
        "compiled": setup.compiled,
        "fused": setup.fused,
        "code": _provenance.code_digest(),
    }


def _changes(found: Checkpoint, setup: Setup) -> list[str]:
    """What changed since a checkpoint was written, one sentence each."""
    names = {"device": "device", "threads": "number of torch threads", "compiled": "compilation",
             "fused": "compilation of signs", "code": "version of the code"}  # fmt: skip
    return [
        f"the {words} changed from {found.facts[key]} to {now} since epoch "
        f"{found.facts['epoch']}: the last bits may differ from an uninterrupted run's."
        for key, words in names.items()
        if key in found.facts and (now := _place(setup)[key]) != found.facts[key]
    ]


def _refuse_another_spec(found: Checkpoint, spec: TrainingSpec, folder: Path) -> None:
    if found.facts["spec_digest"] == spec.digest():
        return
    listed = differences(found.facts["spec"], spec.identity())
    more = f" and {len(listed) - 4} more" if len(listed) > 4 else ""
    raise FileProblem(
        f"{folder} holds a run of another spec, which differs in {', '.join(listed[:4])}{more}: "
        "to start anew give another name (name=…) or another folder, or delete that one."
    )


def _refuse_other_images(found: Checkpoint, setup: Setup, folder: Path) -> None:
    if found.facts["data"] != files.finite(setup.datasets.records):
        raise FileProblem(f"{folder} holds a run on other images than {setup.spec.data.name} has "
                          "now: restore the data, or start anew in another folder.")  # fmt: skip


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keep a second run out of a folder; the lock dies with its process."""
    import filelock

    if (folder / _FOREIGN).exists():
        raise FileProblem(f"{folder} holds the results of a sweep: give another name (name=…) or "
                          "another folder.")  # fmt: skip
    held = filelock.FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held.acquire(timeout=0)
    except filelock.Timeout:
        raise FileProblem(f"another `gradlab train` is writing to {folder}: wait for it to end, or "
                          "give another name (name=…) or folder.") from None  # fmt: skip
    except OSError as error:
        raise FileProblem(f"{folder} cannot be written ({(error.strerror or str(error)).lower()}): "
                          "choose another folder.") from None  # fmt: skip
    try:
        yield
    finally:
        held.release()


@contextlib.contextmanager
def _chosen_convolutions(device: str) -> Iterator[None]:
    """Let cuDNN try out its algorithms: all batches of a run have one shape."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or device != "cpu"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Run with so many torch threads; the former number comes back afterwards."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
