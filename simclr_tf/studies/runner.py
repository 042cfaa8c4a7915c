"""Trains and scores the settings of a study, one after the other; a second call continues."""

from __future__ import annotations

import json
import os
import pathlib
import time

from simclr_tf.errors import TryAgainError, UsageError
from simclr_tf.studies.processes import run_command
from simclr_tf.training.run_directory import read_metrics, write_atomically

_USAGE = 2


class Runner:
    """Runs the settings of a `Study` in a directory.

    DIR/runs/SETTING is an ordinary run directory. DIR/results.jsonl has a line for each setting
    that was tried: {"setting", "columns", "epochs", "contrastive_accuracy", "scores", "seconds",
    "error"}. A setting with an error is tried again by the next call.

    Args:
      study: a `Study`.
      directory: path of DIR.
      flags: dict of flag of `simclr-tf pretrain` to its text, the same for all settings.
      protocol: of `simclr-tf evaluate`, "linear" or "knn".
      log: called with a line of text.
      call: runs a command: (list of words, path of its log) -> `processes.Ended`.
      data_of_task: a function of the name of a task of the study to its npz file.

    Attributes:
      settings: list of `Setting`s.
      results: dict of name of a setting to its line of results.jsonl.

    Example:

    >>> study = simclr_tf.studies.STUDIES["strength"]
    >>> runner = simclr_tf.studies.Runner(study, "strength", study.flags({}), "linear")
    >>> len(runner.settings), runner.rows()
    (5, [])
    """

    def __init__(
        self,
        study,
        directory,
        flags,
        protocol,
        log=print,
        call=run_command,
        data_of_task=None,
    ):
        self.study, self.directory, self.flags = study, pathlib.Path(directory), flags
        self.protocol, self.log, self.call = protocol, log, call
        self.data_of_task = data_of_task
        self.settings = study.settings(flags)
        self.results = self._read()

    @property
    def score_columns(self):
        """Columns of the table that are accuracies of features, such as "linear_h"."""
        return [f"{self.protocol}_{layer}" for layer in self.study.layers]

    def run(self):
        """Trains and scores every setting that has no result yet.

        Raises:
          errors.TryAgainError: SIGTERM came, or the machine stopped a setting.
          errors.UsageError: the very first setting is refused: all would be.
        """
        for number, setting in enumerate(self.settings, 1):
            if self._is_finished(setting):
                continue
            left = self._time_left(number - 1)
            self.log(f"setting {number} of {len(self.settings)}: {setting.name}{left}")
            begin = time.monotonic()
            result = self._run(setting)
            result["seconds"] = round(time.monotonic() - begin, 1)
            self.results[setting.name] = result
            self._write()

    def rows(self):
        """The rows of the table, those of each setting that was tried: columns, scores, errors."""
        rows = []
        for setting in self.settings:
            result = self.results.get(setting.name)
            for scores in result["scores"] if result else ():
                rest = {key: result[key] for key in ("contrastive_accuracy", "seconds", "error")}
                rest["seconds"] = str(rest["seconds"])  # floats of the table are fractions
                rows.append({**setting.columns, **scores, **rest})
        return rows

    def _is_finished(self, setting):
        return setting.name in self.results and not self.results[setting.name]["error"]

    def _run(self, setting):
        """The result of a setting, without its time."""
        run_dir = self.directory / "runs" / setting.name
        result = {
            "setting": setting.name,
            "columns": setting.columns,
            "epochs": int({**self.flags, **setting.flags}["epochs"]),
            "contrastive_accuracy": None,
            "scores": self._no_scores(),
            "error": None,
        }
        words = [f"--{name}={text}" for name, text in {**self.flags, **setting.flags}.items()]
        ended = self._call(setting, ["pretrain", f"--run_dir={run_dir}", *words])
        if not ended.code:
            result["contrastive_accuracy"] = read_metrics(run_dir / "metrics.jsonl")[-1].get(
                "contrastive_accuracy"
            )
            ended, result["scores"] = self._score(setting, run_dir)
        if ended.code:
            if ended.code == _USAGE and not self.results:
                raise UsageError(ended.reason)
            self.log(f"{setting.name}: {ended.reason}")
            result["error"] = ended.reason
        return result

    def _score(self, setting, run_dir):
        """How the last command ended, and a dict of scores for each task."""
        words = ["evaluate", f"--run_dir={run_dir}", f"--protocol={self.protocol}"]
        words.append(f"--layer={','.join(self.study.layers)}")
        if not self.study.tasks:
            ended = self._call(setting, words)
            return ended, [self._scores_of(ended)]
        rows = self._no_scores()
        for row in rows:
            path = self.data_of_task(row["task"])
            data = [f"--dataset=npz:{path}", "--train_split=train", "--test_split=test"]
            ended = self._call(setting, [*words, *data])
            row.update(self._scores_of(ended))
            if ended.code:
                break
        return ended, rows

    def _no_scores(self):
        """The scores of a setting that failed: a dict for each task, or one."""
        none = dict.fromkeys(self.score_columns)
        tasks = self.study.tasks.items()
        named = [{"task": name, "chance": 1.0 / task.classes, **none} for name, task in tasks]
        return named or [none]

    def _scores_of(self, ended):
        """{"linear_h": accuracy, ...} from the JSON line of `evaluate`; None after a failure."""
        if ended.code:
            return dict.fromkeys(self.score_columns)
        found = json.loads(ended.output.splitlines()[-1])
        by_layer = found.get("layers", {found["layer"]: found})
        return {
            column: by_layer[layer][self.protocol]
            for column, layer in zip(self.score_columns, self.study.layers)
        }

    def _call(self, setting, words):
        ended = self.call(words, self.directory / "logs" / f"{setting.name}.txt")
        if ended.stopped or ended.code in (os.EX_TEMPFAIL, 130):
            raise TryAgainError(
                f"stopped in {setting.name}; {self.progress()}. Start the same command again."
            )
        return ended

    def progress(self):
        """What is there, in words: "DIR has 2 of 6 settings"."""
        done = sum(map(self._is_finished, self.settings))
        return f"{self.directory} has {done} of {len(self.settings)} settings"

    def _time_left(self, done):
        """The time left in words, from the time of the epochs so far; empty before the first."""
        finished = [result for result in self.results.values() if not result["error"]]
        epochs = sum(result["epochs"] for result in finished)
        if not epochs:
            return ""
        left = sum(
            int({**self.flags, **setting.flags}["epochs"])
            for setting in self.settings[done:]
            if not self._is_finished(setting)
        )
        return f"; {duration(left * sum(r['seconds'] for r in finished) / epochs)} left"

    @property
    def _path(self):
        return self.directory / "results.jsonl"

    def _read(self):
        return {row["setting"]: row for row in read_metrics(self._path)}

    def _write(self):
        ordered = [
            self.results[setting.name] for setting in self.settings if setting.name in self.results
        ]
        write_atomically(self._path, "".join(json.dumps(row) + "\n" for row in ordered))


def duration(seconds):
    """A duration in words: "1 h 5 min", "12 min", "less than a minute"."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
