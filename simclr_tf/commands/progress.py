"""How far a long pass over images is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import datetime
import shutil
import sys
import time


@contextlib.contextmanager
def counted(total, say, every_seconds=30.0):
    """Shows images done and in all, images a second and the time left.

    A bar on stdout where that is a terminal; else lines to `say`.

    Args:
      total: images in all.
      say: called with a line of text.
      every_seconds: at least so long between two lines.

    Yields:
      A function to call with the number of images done since its last call.
    """
    if sys.stdout.isatty():
        from tqdm import tqdm

        # tqdm takes a terminal that does not know its size for one without room.
        columns, lines = shutil.get_terminal_size()
        room = {"ncols": min(columns, 100), "nrows": lines}
        with tqdm(total=total, unit=" images", file=sys.stdout, **room) as bar:
            yield bar.update
    else:
        yield _Lines(total, say, every_seconds).add


class _Lines:
    """Says how far it is when the last time is long ago."""

    def __init__(self, total, say, every_seconds, clock=time.monotonic):
        self._total, self._say, self._every, self._clock = total, say, every_seconds, clock
        self._done, self._start = 0, clock()
        self._next = self._start + every_seconds

    def add(self, count):
        """Counts so many more."""
        self._done += count
        now = self._clock()
        if now < self._next:
            return
        self._next = now + self._every
        rate = self._done / (now - self._start)
        left = datetime.timedelta(seconds=round(max(0, self._total - self._done) / rate))
        self._say(f"{self._done:,} of {self._total:,} images, {rate:,.0f} a second, {left} left")
