"""Commands that train networks and use them: train, evaluate, predict."""

from __future__ import annotations

import csv
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from gradlab.cli import variational
from gradlab.cli.common import (
    RESULTS,
    Ema,
    Json,
    NoReport,
    Overrides,
    Results,
    UsageError,
    WorkError,
    app,
    print_json,
    print_table,
    tell,
)
from gradlab.cli.variational import check_images, device_of, network_of, weights_of

if TYPE_CHECKING:
    from gradlab.training import Moment, TrainingResult

FIGURE = "learning_curve"
TOP = 3

TrainingArgument = Annotated[
    str,
    typer.Argument(metavar="SPEC", help="A TOML file, a shipped training, or a run's folder."),
]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's folder or name, or a file of weights.")
]
NoiseOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Change how noise is drawn, such as variational.method.estimator=local.",
        show_default=False,
    ),
]


@app.command(epilog="Example: gradlab train mnist_mlp loop.epochs=5 model.width=128")
def train(
    spec: TrainingArgument,
    overrides: Overrides = None,
    results: Results = RESULTS,
    as_json: Json = False,
    no_report: NoReport = False,
) -> None:
    """Train a network, or go on where it stopped."""
    from gradlab import training

    checked = training.load(spec, overrides or ())
    folder = results / checked.name
    if (Path(spec) / "spec.json").is_file() and not overrides:
        folder = Path(spec)
    with Display(checked.loop.epochs) as display:
        try:
            result = training.run(checked, folder, progress=display.show)
        except training.Interrupted as interrupt:
            raise WorkError(str(interrupt)) from None
        except training.Diverged as diverged:
            if len(diverged.rows) > 1 and not no_report:
                draw(folder, checked.name)
            raise WorkError(str(diverged)) from None
    if as_json:
        print_json({"folder": str(folder), "weights": str(result.weights), **result.final})
    else:
        _print_result(result)
    if not no_report:
        for path in draw(folder, checked.name):
            tell(f"figure:  {path}")


def _print_result(result: TrainingResult) -> None:
    from gradlab.sweep.units import counted, seconds_text

    final = result.final
    if result.trained:
        tell(f"{counted(result.trained, 'epoch')} trained; "
             f"{seconds_text(final['seconds'])} in all.")  # fmt: skip
    else:
        tell("All epochs were trained before.")
    epochs = counted(final["averaged_epochs"], "epoch")
    rows = [
        ["train", *_shown(final["train_loss"], final["train_accuracy"]), f"mean of last {epochs}"],
        [final["evaluated_on"], *_shown(final["val_loss"], final["val_accuracy"]),
         f"mean of last {epochs}"],
    ]  # fmt: skip
    best = final["best"]["val_accuracy"]
    if best is not None:
        rows.append([final["evaluated_on"], "", f"{best['val_accuracy']:.4f}",
                     f"best epoch ({best['epoch']})"])  # fmt: skip
    if final["ema_accuracy"] is not None:
        rows.append([f"{final['evaluated_on']}, averaged weights",
                     *_shown(final["ema_loss"], final["ema_accuracy"]),
                     f"mean of last {epochs}"])  # fmt: skip
    for key, words in (("test", "test"), ("ema_test", "test, averaged weights")):
        if key in final:
            rows.append([words, *_shown(final[key]["loss"], final[key]["accuracy"]), "at the end"])
    rows += _noise_rows(final)
    print_table(["images", "loss", "accuracy", "of"], rows, left=1)
    if "compression" in final:
        tell(f"{variational.fewer(final['last']['compression'])}: see layers.csv.")
    tell(f"weights: {result.weights}")


def _noise_rows(final: dict[str, Any]) -> list[list[str]]:
    """The predictions at the end, by how they were made."""
    rows = []
    for kind, found in final.get("predictions", {}).items():
        numbers = _shown(found["negative_log_likelihood"], found["accuracy"])
        rows.append([variational.words(kind, found), *numbers, "at the end"])
    return rows


def _shown(loss: float | None, accuracy: float | None) -> list[str]:
    return ["" if value is None else f"{value:.4f}" for value in (loss, accuracy)]


def draw(folder: Path, name: str) -> list[Path]:
    """Draw a run's learning curve from its log: PNG, SVG, and the CSV of what is drawn."""
    import hashlib

    import pandas as pd

    from gradlab import __version__
    from gradlab.reporting import drawing
    from gradlab.reporting.tables import write_bytes

    log = folder / "log.csv"
    module = drawing.load_figure(FIGURE)
    table = pd.read_csv(log)
    try:
        figure, numbers = module.draw({"training": table.assign(name=name)})
    except ValueError as error:
        tell(f"no figure: {error}")
        return []
    digest = hashlib.sha256(log.read_bytes()).hexdigest()
    words = (f"Training run {name}, figure {FIGURE}. Table: log.csv sha256:{digest}. "
             f"Draw it again: gradlab train {folder}")  # fmt: skip
    software = f"gradlab {__version__}"
    facts: dict[str, dict[str, Any]] = {
        "png": {"Title": name, "Software": software, "Description": words, "Source": name},
        "svg": {"Title": name, "Creator": software, "Description": words, "Source": name,
                "Date": None},
    }  # fmt: skip
    content = {ending: drawing.render(figure, ending, about) for ending, about in facts.items()}
    content["csv"] = numbers.to_csv(index=False).encode()
    paths = [folder / f"{FIGURE}.{ending}" for ending in content]
    for path, data in zip(paths, content.values(), strict=True):
        write_bytes(path, data)
    return paths


@app.command(epilog="Example: gradlab evaluate results/mnist_mlp --split test --ema")
def evaluate(
    run: RunArgument,
    overrides: NoiseOverrides = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Another data set than the run's.", show_default=False),
    ] = None,
    split: Annotated[
        str, typer.Option(metavar="SPLIT", help="test, train or validation.")
    ] = "test",
    ema: Ema = False,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default=False,
            help="Draws that a noisy network's prediction averages [default: the run's "
            "variational.evaluation_samples].",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="Another data set, to be told apart by a noisy network.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu or cuda.")] = "auto",
    results: Results = RESULTS,
    as_json: Json = False,
) -> None:
    """Loss, accuracy and calibration of trained weights."""
    from dataclasses import replace

    from gradlab import data as sets
    from gradlab import training

    changed = overrides or []
    place = weights_of(run, results, ema)
    model, facts = network_of(place, ema, changed)
    draws = variational.draws_of(samples, changed, facts, place)
    chosen = device_of(device, model)
    known = facts.get("data") or {}
    name = data or known.get("name")
    if name is None:
        raise UsageError(f"{place} does not say what it was trained on: give --data NAME.")
    takes = getattr(model, "input_shape", known.get("image_shape"))
    check_images(name, "--data", takes, place)
    if against is not None:
        variational.require_noise(facts, "--against", place)
        check_images(against, "--against", takes, place)
    seed, share = int(known.get("seed", 0)), float(known.get("validation", 0.0))
    loaded = sets.load(
        name, split, device=chosen, validation=share if split != "test" else 0.0, seed=seed
    )
    if known:  # the normalization belongs to the network
        loaded = replace(loaded, mean=tuple(known["mean"]), std=tuple(known["std"]))
    outside = None
    if against is not None:
        outside = sets.load(against, "test", device=chosen)
        outside = replace(outside, mean=loaded.mean, std=loaded.std)
    found = training.evaluate(model.to(chosen), loaded, details=True)
    noise = facts.get("variational")
    if noise:
        number = draws or noise["evaluation_samples"]
        found |= variational.uncertainty(model, loaded, outside, number, seed)
    if "changed" in facts:
        found["changed"] = facts["changed"]
    if as_json:
        print_json({"weights": str(place), "data": name, "split": split, **found})
        return
    rows = [[key, f"{value:.4f}"] for key, value in found["class_accuracy"].items()
            if value is not None]  # fmt: skip
    print_table(["class", "accuracy"], rows, left=1)
    typer.echo()
    typer.echo(f"{name} ({split}), {found['examples']:,} images: accuracy {found['accuracy']:.4f}, "
               f"loss {found['loss']:.4f}, calibration error "
               f"{found['calibration_error']:.4f}.")  # fmt: skip
    if "predictions" in found:
        variational.print_uncertainty(found)
    told = variational.changes(facts)
    if told:
        typer.echo(f"\n{told}")


@app.command(epilog="Example: gradlab predict results/mnist_mlp digit.png")
def predict(
    run: RunArgument,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Pictures, or .npy or .npz files; KEY=VALUE among them changes how noise is "
            "drawn, such as variational.method.estimator=local.",
        ),
    ],
    ema: Ema = False,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default=False,
            help="Average so many draws of the noise [default: mean weights].",
        ),
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, a row per image.")] = False,
    results: Results = RESULTS,
    as_json: Json = False,
) -> None:
    """Classify images with trained weights."""
    from gradlab import training
    from gradlab.training import uncertainty
    from gradlab.training.images import read_images

    if as_csv and as_json:
        raise UsageError("--csv and --json exclude each other: give one of them.")
    overrides = [text for text in inputs if "=" in text and not Path(text).exists()]
    paths = [Path(text) for text in inputs if text not in overrides]
    place = weights_of(run, results, ema)
    model, facts = network_of(place, ema, overrides)
    draws = variational.draws_of(samples, overrides, facts, place)
    if not paths:
        raise UsageError("there is nothing to classify: give pictures, or .npy or .npz files.")
    images = read_images(paths, facts)
    if draws is None:
        probabilities = training.predict(model, images.data).tolist()
    else:
        seed = int(facts["data"].get("seed", 0))
        drawn = uncertainty.probabilities(model, images.data, draws, seed)
        probabilities = drawn.mean(0).tolist()
    classes = images.data.classes
    found = []
    for source, index, row in zip(images.sources, images.indices, probabilities, strict=True):
        ranked = sorted(zip(row, classes, strict=False), key=lambda pair: -pair[0])
        found.append({"input": source, "index": index, "class": ranked[0][1],
                      "probability": ranked[0][0],
                      "probabilities": dict(zip(classes, row, strict=False)),
                      **{key: facts[key] for key in ("changed",) if key in facts}})  # fmt: skip
    told = variational.changes(facts)
    if as_json:
        print_json(found)
        return
    if as_csv:
        _print_csv(found, classes)
    else:
        _print_predictions(found)
    if told:  # not among the rows of CSV
        (tell if as_csv else typer.echo)(told)


def _print_csv(found: list[dict[str, Any]], classes: tuple[str, ...]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["input", "index", "class", "probability", *classes])
    for entry in found:
        writer.writerow([entry["input"], entry["index"], entry["class"], entry["probability"],
                         *entry["probabilities"].values()])  # fmt: skip


def _print_predictions(found: list[dict[str, Any]]) -> None:
    rows = []
    for entry in found:
        ranked = sorted(entry["probabilities"].items(), key=lambda pair: -pair[1])[1:TOP]
        others = ", ".join(f"{name} {share:.3f}" for name, share in ranked)
        rows.append([entry["input"], str(entry["index"]), entry["class"],
                     f"{entry['probability']:.3f}", others])  # fmt: skip
    print_table(["input", "image", "class", "probability", "then"], rows, left=3)


class Display:
    """A run's progress on stderr: a bar on a terminal, a line per epoch elsewhere.

    Args:
        epochs: of the run.
        stream: where to write.
    """

    def __init__(self, epochs: int, stream: TextIO | None = None) -> None:
        from gradlab.sweep.progress import bar

        self.stream = stream or sys.stderr
        self.epochs = epochs
        self.last: Moment | None = None
        self.row: dict[str, Any] | None = None
        self._began: tuple[float, float] | None = None  # when, and at which epoch
        self._bar = bar(self.words, self.stream) if self.stream.isatty() else None

    def __enter__(self) -> Display:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("", total=self.epochs)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, moment: Moment) -> None:
        """Take in how far the run is."""
        if moment.note is not None:
            self.say(moment.note)
            return
        now, done = time.monotonic(), moment.epoch - 1 + moment.step / moment.steps
        if self._began is None:
            self._began = (now, done)
        self.last = moment
        if moment.row is not None:
            self.row = moment.row
            if self._bar is None:
                self.say(self.words())
        if self._bar is not None:
            self._bar.update(self._task, completed=done)

    def say(self, sentence: str) -> None:
        """Write one line beside the progress."""
        if self._bar is not None:
            self._bar.console.print(sentence, highlight=False, markup=False)
        else:
            print(sentence, file=self.stream, flush=True)

    def words(self) -> str:
        """``epoch 3/20, loss 0.532, val accuracy 0.912, 7,600 images/s, about 3 min left``."""
        from gradlab.sweep.units import about

        if self.last is None:
            return "starting"
        parts = [f"epoch {self.last.epoch}/{self.epochs}"]
        if self.row is not None:
            parts += [f"loss {self.row['train_loss']:.4f}",
                      f"accuracy {self.row['train_accuracy']:.4f}",
                      f"evaluated {self.row['val_accuracy']:.4f}",
                      f"{self.row['images_per_second']:,.0f} images/s"]  # fmt: skip
        left = self.left(time.monotonic())
        if left is not None:
            parts.append(f"{about(left)} left")
        return ", ".join(parts)

    def left(self, now: float) -> float | None:
        """Seconds left, ``None`` while nothing is known."""
        if self.last is None or self._began is None:
            return None
        started, first = self._began
        done = self.last.epoch - 1 + self.last.step / self.last.steps
        if done <= first:
            return None
        return (now - started) / (done - first) * (self.epochs - done)
