"""The rival: a population of MLPs evaluated as evosax (JAX) does it, in a process of its own.

evosax proposes members (``ask``) and learns from their losses (``tell``); what lies between is a
function of the user's, mapped over the members. The network here is evosax's own ``MLP`` (flax)
with ``jnp.sign``, and the same two lines in plain ``jnp``, each mapped in three ways: one member
after the other (``jax.lax.map``), four at a time (``jax.lax.map`` with ``batch_size``), and
``jax.vmap`` of four in a Python loop. ``columns`` is a network that no library offers and a careful
user may write: activations held as ``(num_dim, B)``, which suits XLA's products on a processor.

JAX runs beside gradlab's process and answers requests, one a line, so that both can be timed in
the same interleaved rounds; a request without work takes some 50 microseconds. Its environment may
be another: ``--peer-python``.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# What a library's user would write; and what only a careful one would.
IDIOMS = tuple(
    f"{network}_{way}" for network in ("evosax", "jnp") for way in ("map", "map4", "vmap4")
)
BY_HAND = tuple(f"columns_{way}" for way in ("map", "map4", "vmap4"))
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def alone(threads: int) -> None:
    """Start this program again on so many cores and threads, and all its children with it.

    Libraries read their thread counts when they are loaded, so a running program cannot ask.
    """
    if all(os.environ.get(name) == str(threads) for name in THREAD_VARIABLES):
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


class Peer(contextlib.AbstractContextManager["Peer"]):
    """A process that evaluates populations with JAX.

    Args:
        python: the interpreter that has jax and evosax.
        threads: threads of XLA.

    Raises:
        SystemExit: the interpreter cannot import them.
    """

    def __init__(self, python: Path | None, threads: int) -> None:
        flags = f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}"
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        # torch's and gradlab's environment is not the peer's
        environment.pop("PYTHONPATH", None)
        self._folder = tempfile.TemporaryDirectory()
        try:
            self._process = subprocess.Popen(
                [python or sys.executable, __file__, self._folder.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
        except OSError as error:
            raise SystemExit(f"--peer-python {python}: {error.strerror}.") from None
        self.versions = self.ask("versions")
        if self.versions is None:
            raise SystemExit(
                "the rival needs jax and evosax: pip install -e '.[bench]', or name an interpreter "
                "that has them (--peer-python), or leave it out (--without-peer)."
            )

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()

    def ask(self, *request: str) -> Any:
        """One request, one answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise EOFError from None
        line = self._process.stdout.readline()
        if not line:
            raise EOFError(f"the rival's process ended while it was asked to {request}.")
        return json.loads(line)

    def load(self, inputs: np.ndarray, targets: np.ndarray, weights: Sequence[np.ndarray]) -> None:
        """The batch, ``(B, n)`` and ``(B, 1)``, and the members, ``(P, outputs, inputs)`` each."""
        layers = {f"layer{index}": each for index, each in enumerate(weights)}
        np.savez(Path(self._folder.name) / "load.npz", inputs=inputs, targets=targets, **layers)
        self.ask("load")

    def case(self, name: str) -> Callable[[], Any]:
        """A call that evaluates the population in this way, or multiplies matrices ("product")."""
        return functools.partial(self.ask, "run", name)

    def losses(self, name: str) -> np.ndarray:
        """The losses ``(P,)``."""
        self.ask("losses", name)
        return np.asarray(np.load(Path(self._folder.name) / "losses.npy"))

    def outputs(self, members: int) -> np.ndarray:
        """The outputs of the first members, ``(members, B)``, by evosax's own network."""
        self.ask("outputs", str(members))
        return np.asarray(np.load(Path(self._folder.name) / "outputs.npy"))


class _Worker:
    """What runs in the other process; the only place that knows JAX."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cases: dict[str, Callable[[], Any]] = {}
        self.forward: Callable[[int], Any]

    def versions(self) -> dict[str, str] | None:
        try:
            return {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "evosax")}
        except importlib.metadata.PackageNotFoundError:
            return None

    def load(self) -> None:
        """Compile every way for these shapes."""
        import jax
        import jax.numpy as jnp
        from evosax.algorithms import Open_ES
        from evosax.problems.networks import MLP, identity_output_fn

        data = {
            name: jnp.asarray(value) for name, value in np.load(self.folder / "load.npz").items()
        }
        x, t = data.pop("inputs"), data.pop("targets")
        plain = list(data.values())
        kernels = {
            f"Dense_{index}": {"kernel": weight.swapaxes(1, 2).copy()}
            for index, weight in enumerate(plain)
        }
        network = MLP(
            layer_sizes=[weight.shape[1] for weight in plain],
            activation=jnp.sign,
            output_fn=identity_output_fn,
            use_bias=False,
        )

        def rows(weights: Any) -> Any:
            hidden = x
            for weight in weights[:-1]:
                hidden = jnp.sign(hidden @ weight.T)
            return hidden @ weights[-1].T

        def columns(weights: Any) -> Any:
            hidden = x.T
            for weight in weights[:-1]:
                hidden = jnp.sign(weight @ hidden)
            return (weights[-1] @ hidden).T

        population = {"params": kernels}
        networks = {
            "evosax": (lambda member: network.apply(member, x), population),
            "jnp": (rows, plain),
            "columns": (columns, plain),
        }
        self.cases = {"nothing": lambda: None}
        for name, (outputs, members) in networks.items():

            def loss(member: Any, outputs: Any = outputs) -> Any:
                return jnp.square(outputs(member) - t).mean()

            mapped = jax.jit(functools.partial(jax.lax.map, loss))
            fours = jax.jit(functools.partial(jax.lax.map, loss, batch_size=4))
            self.cases[f"{name}_map"] = functools.partial(mapped, members)
            self.cases[f"{name}_map4"] = functools.partial(fours, members)
            self.cases[f"{name}_vmap4"] = _in_fours(jax.jit(jax.vmap(loss)), members)
            if name == "evosax":
                evaluate = mapped
        forward = jax.jit(networks["evosax"][0])
        self.forward = lambda member: forward(jax.tree.map(lambda leaf: leaf[member], population))
        square = jnp.ones((2048, 2048))
        self.cases["product"] = functools.partial(jax.jit(jnp.matmul), square, square)

        one = jax.tree.map(lambda leaf: leaf[0], population)
        strategy = Open_ES(population_size=len(plain[0]), solution=one)
        options = strategy.default_params
        state, key = strategy.init(jax.random.key(0), one, options), jax.random.key(1)

        def generation() -> Any:
            members, asked = strategy.ask(key, state, options)
            return strategy.tell(key, members, evaluate(members), asked, options)

        self.cases["evosax_generation"] = generation

    def run(self, name: str) -> None:
        """Evaluate and wait for the result."""
        import jax

        jax.block_until_ready(self.cases[name]())

    def losses(self, name: str) -> None:
        found = self.cases[name]()
        together = np.concatenate([np.atleast_1d(each) for each in found])
        np.save(self.folder / "losses.npy", together)

    def outputs(self, members: str) -> None:
        found = [np.asarray(self.forward(member))[:, 0] for member in range(int(members))]
        np.save(self.folder / "outputs.npy", np.stack(found))


def _in_fours(function: Callable[[Any], Any], members: Any) -> Callable[[], list[Any]]:
    """Four members at a time, in a Python loop: activations of all would not fit a cache."""
    import jax

    size = len(jax.tree.leaves(members)[0])
    parts = [
        jax.tree.map(lambda leaf, start=start: leaf[start : start + 4], members)
        for start in range(0, size, 4)
    ]
    return lambda: [function(part) for part in parts]


def _serve(folder: Path) -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed is not an answer
    worker = _Worker(folder)
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        answer = getattr(worker, method)(*arguments)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
