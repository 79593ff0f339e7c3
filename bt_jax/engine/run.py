"""A running training: where it starts, how it reports, and how it saves."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator

from bt_jax.engine.checkpoint import Checkpoints
from bt_jax.engine.notes import RunNotes, check_data, data_position
from bt_jax.engine.session import Session
from bt_jax.engine.setup import Setup
from bt_jax.engine.state import TrainState
from bt_jax.reporting.progress import Reporter

Fresh = Callable[[TrainState], tuple[TrainState, list[str]]]


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a training begins.

    Attributes:
      state, step: of the newest checkpoint or a new run.
      notes: of that checkpoint; the defaults for a new run.
      notices: sentences for the user.
    """

    state: TrainState
    step: int
    notes: RunNotes
    notices: list[str]


@dataclasses.dataclass(frozen=True)
class Run:
    """One start of a training: its setup, and what is open while it runs."""

    setup: Setup
    session: Session
    checkpoints: Checkpoints
    reporter: Reporter
    start: Start
    begin: float = dataclasses.field(default_factory=time.monotonic)

    def seconds(self) -> float:
        """Wall-clock seconds, earlier starts included."""
        return self.start.notes.seconds + self.seconds_of_this_start()

    def seconds_of_this_start(self) -> float:
        return time.monotonic() - self.begin

    def save(self, state: TrainState, step: int, *, looked: bool, score: float | None = None) -> None:
        """Starts saving the state and the run's notes."""
        self.session.check()
        self.reporter.flush()  # a start from this checkpoint says so if the file has fewer records than its notes
        notes = RunNotes(
            config=self.setup.config,
            data=data_position(step, self.setup.facts, *self.setup.fingerprints),
            looked=looked,
            history=tuple(self.reporter.history()),
            seconds=self.seconds(),
        )
        self.checkpoints.save(step, state, run=notes.to_json(), score=score)

    def finish(self) -> None:
        """Waits for the last checkpoint and reads it back, before the run reports it.

        Raises:
          UserError: it could not be written, or cannot be read back.
        """
        self.checkpoints.wait()
        self.reporter.flush()  # the report reads the file
        self.checkpoints.read_back(self.setup.facts.total_steps, self.setup.abstract_state())

    def leave(self, step: int) -> None:
        """Ends a run that was asked to stop, once its step is on disk.

        Raises:
          Preempted: always.
        """
        self.checkpoints.wait()
        self.session.preemption.leave(
            f"step {step} of {self.setup.facts.total_steps} is saved in {self.checkpoints.folder}"
        )


@contextlib.contextmanager
def started(setup: Setup, session: Session, *, fresh: Fresh | None = None, quiet: bool = False) -> Iterator[Run]:
    """Restores the newest checkpoint of `setup.workdir`, or makes a new state; closes everything at the end.

    Args:
      fresh: changes the state of a new run (for example to existing weights), and returns sentences about it.
      quiet: whether to leave out progress lines.

    Raises:
      UserError: no checkpoint can be read, the run has another config, the data has changed, or (at the end) the last
        checkpoint could not be written.
    """
    begin, facts, saving = time.monotonic(), setup.facts, setup.checkpoint
    setup.workdir.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(
        setup.workdir,
        saving.keep,
        keep_every_steps=saving.keep_every_epochs * facts.steps_per_epoch,
        keep_best=saving.keep_best,
    )
    with contextlib.closing(checkpoints):
        start = restored_or_new(setup, checkpoints, fresh)
        session.claim()
        reporter = Reporter(
            setup.workdir,
            start_step=start.step,
            total_steps=facts.total_steps,
            steps_per_epoch=facts.steps_per_epoch,
            batch_size=facts.batch_size,
            every_steps=setup.log.every_steps,
            tensorboard=setup.log.tensorboard,
            wandb=setup.log.wandb,
            mlflow=setup.log.mlflow,
            config=setup.config,
            short_names=setup.method.short_names,
            active=session.is_first,
            lines=not quiet,
            history=start.notes.history,
            # A look that will be taken again will also be recorded again.
            history_is_all=start.step == 0 or not start.notes.looked,
        )
        with contextlib.closing(reporter):
            yield Run(setup, session, checkpoints, reporter, start, begin)


def restored_or_new(setup: Setup, checkpoints: Checkpoints, fresh: Fresh | None = None) -> Start:
    """The newest readable checkpoint, or else a new state; arguments and errors as for `started`."""
    state, step, notices = checkpoints.restore_newest(setup.abstract_state())
    if state is None or step is None:
        state, sentences = setup.init_state(), []
        if fresh is not None:
            state, sentences = fresh(state)
        return Start(state, 0, RunNotes(), notices + sentences)
    notes = RunNotes.from_json(checkpoints.run_of(step))
    notes.check_config(setup.config, setup.workdir)  # config.json may be lost, or changed by hand
    check_data(notes.data, step, setup.facts, *setup.fingerprints)
    return Start(state, step, notes, notices)
