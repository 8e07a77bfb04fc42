"""A run's folder: what it holds, that it goes on exactly, and whom it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gradlab import training
from gradlab.data import Dataset
from gradlab.training import Datasets, Diverged, FileProblem, Interrupted, Moment, SpecError
from gradlab.training.folder import table
from tests.training import tiny


def run(folder: Path, **changes: Any) -> training.TrainingResult:
    options = {key: changes.pop(key) for key in ("progress", "stop_after") if key in changes}
    data = changes.pop("datasets", None) or tiny.datasets()
    return training.run(tiny.spec(**changes), folder, datasets=data, **options)


def test_a_run_leaves_everything_in_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "run"
    changes = {"loop": {"ema": 0.9, "gradient_norms": True}, "checkpoint": {"keep": [2]}}
    result = run(folder, datasets=tiny.datasets(test=True), **changes)
    assert sorted(path.name for path in folder.iterdir() if path.name != ".lock") == [
        "checkpoint.previous.safetensors", "checkpoint.safetensors", "environment.json",
        "gradient_norms.csv", "log.csv", "spec.json", "summary.json", "weights-ema.safetensors",
        "weights-epoch-0002.safetensors", "weights.safetensors"]  # fmt: skip
    assert (result.finished, result.trained) == (True, 3)
    assert [row["epoch"] for row in result.epochs] == [1, 2, 3]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary == json.loads(json.dumps(result.final))
    rows = tiny.log(folder)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [float(row["val_accuracy"]) for row in rows] == [
        row["val_accuracy"] for row in result.epochs]  # fmt: skip
    environment = json.loads((folder / "environment.json").read_text())
    assert {"code", "machine", "torch", "device", "threads", "compiled", "data"} <= set(environment)
    assert training.load(folder).digest() == tiny.spec(**changes).digest()


def test_the_summary_is_the_mean_of_the_last_ten_epochs(tmp_path: Path) -> None:
    result = run(tmp_path, loop={"epochs": 12, "ema": 0.9}, datasets=tiny.datasets(test=True))
    final, rows = result.final, result.epochs
    assert (final["averaged_epochs"], final["epochs"]) == (10, 12)
    for key in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "ema_accuracy"):
        assert final[key] == pytest.approx(sum(row[key] for row in rows[2:]) / 10)
    best = max(row["val_accuracy"] for row in rows)
    assert final["best"]["val_accuracy"]["val_accuracy"] == best
    assert rows[final["best"]["val_accuracy"]["epoch"] - 1]["val_accuracy"] == best
    model, facts = training.build(tmp_path)
    assert facts["epoch"] == 12
    data = tiny.images(30, 2)
    assert training.evaluate(model, data)["accuracy"] == final["test"]["accuracy"]
    averaged, _ = training.build(tmp_path, ema=True)
    assert training.evaluate(averaged, data)["loss"] == pytest.approx(final["ema_test"]["loss"])


@pytest.mark.parametrize("stop", [1, 2])
def test_a_run_goes_on_exactly_where_it_stopped(stop: int, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "loop": {"epochs": 4, "ema": 0.9, "clip": 1.0},
        "schedule": {"name": "one_cycle"},
        "data": {"crop": 1, "flip": True, "mixup": 0.2, "cutout": 2},
        "model": {"surrogate": "ede"},
    }
    whole = run(tmp_path / "whole", **changes)
    first = run(tmp_path / "parts", stop_after=stop, **changes)
    assert (first.finished, first.trained) == (False, stop)
    assert first.weights.name == f"weights-epoch-000{stop}.safetensors"
    assert not (tmp_path / "parts" / "weights.safetensors").exists()
    second = run(tmp_path / "parts", **changes)
    assert (second.finished, second.trained, second.notes) == (True, 4 - stop, [])
    for name in ("weights.safetensors", "weights-ema.safetensors"):
        assert tiny.same(tiny.weights(tmp_path / "whole" / name),
                         tiny.weights(tmp_path / "parts" / name))  # fmt: skip
    assert tiny.log(tmp_path / "whole") == tiny.log(tmp_path / "parts")
    assert whole.trained == 4


def test_a_run_by_an_estimator_goes_on_exactly(tmp_path: Path) -> None:
    changes = {"estimator": {"name": "nes", "population": 10}, "loop": {"epochs": 3}}
    run(tmp_path / "whole", **changes)
    run(tmp_path / "parts", stop_after=1, **changes)
    run(tmp_path / "parts", **changes)
    found = [tiny.weights(tmp_path / name / "weights.safetensors") for name in ("whole", "parts")]
    assert tiny.same(*found)


def test_the_same_spec_gives_the_same_bits_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(tmp_path / name, seed=seed)
    a, b, c = (tiny.weights(tmp_path / name / "weights.safetensors") for name in "abc")
    assert tiny.same(a, b)
    assert not torch.equal(a["first.weight"], c["first.weight"])


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = run(tmp_path)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    (tmp_path / "weights.safetensors").unlink()
    second = run(tmp_path)
    assert (second.trained, second.finished) == (0, True)
    assert second.epochs == first.epochs
    assert second.final == first.final
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    assert second.weights.is_file()


def test_a_truncated_checkpoint_costs_one_epoch_and_no_bit(tmp_path: Path) -> None:
    run(tmp_path / "whole", loop={"epochs": 4})
    run(tmp_path / "cut", loop={"epochs": 4}, stop_after=3)
    path = tmp_path / "cut" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    heard: list[Moment] = []
    result = run(tmp_path / "cut", loop={"epochs": 4}, progress=heard.append)
    assert result.trained == 2
    assert len(result.notes) == 1
    assert "is damaged" in result.notes[0]
    assert result.notes[0].endswith("going on from epoch 2.")
    assert [moment.note for moment in heard if moment.note] == result.notes
    found = [tiny.weights(tmp_path / name / "weights.safetensors") for name in ("whole", "cut")]
    assert tiny.same(*found)


def test_checkpoints_may_be_rarer(tmp_path: Path) -> None:
    changes = {"loop": {"epochs": 5}, "checkpoint": {"every": 2}}

    def stop(moment: Moment) -> None:
        if moment.row is None and moment.epoch == 4:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="interrupted: 2 of 5 epochs are kept, the same command"):
        run(tmp_path / "a", progress=stop, **changes)
    assert run(tmp_path / "a", **changes).trained == 3
    run(tmp_path / "b", loop={"epochs": 5})
    found = [tiny.weights(tmp_path / name / "weights.safetensors") for name in "ab"]
    assert tiny.same(*found)


def test_an_interruption_before_the_first_checkpoint_says_so(tmp_path: Path) -> None:
    def stop(_: Moment) -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="before the first checkpoint: the same command starts"):
        run(tmp_path, progress=stop)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one epoch."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    run(folder, loop={"epochs": 1})
    return folder


class TestRefusals:
    """Whom a folder refuses, in one sentence."""

    @pytest.mark.parametrize(
        ("changes", "words"),
        [({"loop": {"epochs": 2}}, r"differs in loop.epochs \(1, now 2\): to start anew give"),
         ({"loop": {"epochs": 1}, "seed": 4}, r"seed \(0, now 4\)"),
         ({"loop": {"epochs": 1}, "model": {"width": 8}}, r"model.width \(12, now 8\)"),
         ({"loop": {"epochs": 1, "clip": 1.0, "ema": 0.5, "clamp": False}, "seed": 1,
           "optimizer": {"lr": 1.0}}, "and 1 more: to start anew")],
    )  # fmt: skip
    def test_another_spec(self, changes: dict[str, Any], words: str, folder: Path) -> None:
        before = (folder / "checkpoint.safetensors").read_bytes()
        with pytest.raises(FileProblem, match=words) as caught:
            run(folder, **changes)
        assert "\n" not in str(caught.value)
        assert (folder / "checkpoint.safetensors").read_bytes() == before
        assert training.load(folder).loop.epochs == 1  # its spec stays

    def test_other_words_are_welcome(self, folder: Path) -> None:
        assert run(folder, title="new", loop={"epochs": 1}).trained == 0

    def test_other_images(self, folder: Path) -> None:
        data = tiny.datasets()
        other = Dataset(**{**vars(data.train), "record": {"seed": 7}})
        with pytest.raises(FileProblem, match="holds a run on other images"):
            run(folder, loop={"epochs": 1}, datasets=Datasets(other, data.evaluation))

    def test_a_second_run_at_the_same_time(self, folder: Path) -> None:
        import filelock

        with (
            filelock.FileLock(folder / ".lock"),
            pytest.raises(FileProblem, match=r"another `gradlab train` is writing to .*: wait"),
        ):
            run(folder, loop={"epochs": 1})

    def test_a_sweeps_folder(self, tmp_path: Path) -> None:
        (tmp_path / "store.sqlite").write_bytes(b"")
        with pytest.raises(FileProblem, match="holds the results of a sweep: give another name"):
            run(tmp_path)

    def test_an_impossible_place(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(FileProblem, match=r"cannot be written .*choose another folder"):
            run(tmp_path / "file" / "run")

    def test_a_wrong_spec_leaves_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError):
            run(tmp_path / "run", model={"name": "xnor_mpl"})
        assert not (tmp_path / "run").exists()


def test_a_change_of_threads_is_said(tmp_path: Path) -> None:
    changes = {"threads": None}
    run(tmp_path, stop_after=1, **changes)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        notes = run(tmp_path, **changes).notes
    finally:
        torch.set_num_threads(before)
    assert notes == [f"the number of torch threads changed from {before} to {before + 1} since "
                     "epoch 1: the last bits may differ from an uninterrupted run's."]  # fmt: skip


def test_the_number_of_threads_comes_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    run(tmp_path, threads=before + 1)
    assert torch.get_num_threads() == before
    assert json.loads((tmp_path / "environment.json").read_text())["threads"] == before + 1


class TestDivergence:
    """A loss that is no number ends the run, and is not forgotten."""

    CHANGES: dict[str, Any] = {  # noqa: RUF012
        "optimizer": {"name": "sgd", "lr": 1e-3},
        "switch": [{"epoch": 3, "lr": 1e38}],
        "loop": {"epochs": 4},
    }

    def test_it_says_where_and_what_is_left(self, tmp_path: Path) -> None:
        words = (r"no longer a finite number at step \d+, in epoch 3: the checkpoint of epoch 2 is "
                 r"in .*checkpoint\.safetensors; try a lower lr, or loop\.clip\.$")  # fmt: skip
        for _ in range(2):  # and again when it is run again
            with pytest.raises(Diverged, match=words) as caught:
                run(tmp_path, **self.CHANGES)
            rows = tiny.log(tmp_path)
            assert [row["diverged"] for row in rows] == ["false", "false", "true"]
            assert rows[2]["train_loss"] == ""
            assert int(rows[2]["step"]) == caught.value.step
            assert not (tmp_path / "weights.safetensors").exists()
        assert [row["diverged"] for row in caught.value.rows] == [False, False, True]

    def test_in_the_first_epoch_there_is_no_checkpoint(self, tmp_path: Path) -> None:
        with pytest.raises(Diverged, match="in epoch 1: there is no checkpoint before it"):
            run(tmp_path, optimizer={"name": "sgd", "lr": 1e38})


class TestTwoStages:
    """The weights of one run as the start of another."""

    def test_a_run_starts_from_weights(self, tmp_path: Path) -> None:
        first = run(tmp_path / "first", model={"weight": "real"}, loop={"ema": 0.9})
        for ema in (False, True):
            table = {"weights": str(first.folder), "ema": ema}
            folder = tmp_path / f"second-{ema}"
            run(folder, init=table, optimizer={"lr": 1e-30, "name": "sgd"}, loop={"epochs": 1})
            name = "weights-ema.safetensors" if ema else "weights.safetensors"
            before, after = (
                tiny.weights(first.folder / name),
                tiny.weights(folder / first.weights.name),
            )
            assert torch.equal(before["first.weight"], after["first.weight"])

    def test_the_average_starts_there_too(self, tmp_path: Path) -> None:
        first = run(tmp_path / "first")
        run(
            tmp_path / "second",
            init={"weights": str(first.weights)},
            loop={"ema": 0.9, "epochs": 1},
            optimizer={"lr": 1e-30, "name": "sgd"},
        )
        before = tiny.weights(first.weights)["first.weight"]
        after = tiny.weights(tmp_path / "second" / "weights-ema.safetensors")["first.weight"]
        torch.testing.assert_close(before, after)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [({"model": {"width": 8}}, "init.weights: .*of another shape: first.weight"),
         ({}, "init.weights: there is no file none")],
    )  # fmt: skip
    def test_weights_that_do_not_fit_are_refused(
        self, changes: dict[str, Any], words: str, tmp_path: Path
    ) -> None:
        where = run(tmp_path / "first").weights if changes else "none"
        with pytest.raises(SpecError, match=words):
            run(tmp_path / "second", init={"weights": str(where)}, **changes)
        assert not (tmp_path / "second").exists()

    def test_going_on_does_not_need_them(self, tmp_path: Path) -> None:
        first = run(tmp_path / "first")
        changes = {"init": {"weights": str(first.weights)}}
        run(tmp_path / "second", stop_after=1, **changes)
        first.weights.unlink()
        assert run(tmp_path / "second", **changes).finished


def test_few_examples_are_a_seeded_choice(tmp_path: Path) -> None:
    from gradlab.training.setup import prepare

    data = tiny.datasets()
    chosen = [
        prepare(tiny.spec(seed=seed, data={"examples": 40, "evaluation_examples": 20}), data)[0]
        for seed in (0, 0, 1)
    ]
    sizes = [(len(s.datasets.train), len(s.datasets.evaluation)) for s in chosen]
    assert sizes == [(40, 20)] * 3
    first, same, other = (s.datasets.train.images for s in chosen)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_table_keeps_every_digit() -> None:
    rows = [{"a": 0.1 + 0.2, "b": None, "c": True}, {"a": 1e-300, "d": "x,y"}]
    assert table(rows).decode() == 'a,b,c,d\n0.30000000000000004,,true,\n1e-300,,,"x,y"\n'
