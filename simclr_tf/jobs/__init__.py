"""What each command does, given its options as plain attributes; flags are read in `cli.py`.

`pretraining`, `evaluation` and `delivery` (embed, export); `parts` is what they share.
"""

from simclr_tf.jobs.delivery import embed, export
from simclr_tf.jobs.evaluation import evaluate_run
from simclr_tf.jobs.pretraining import pretrain

__all__ = ["embed", "evaluate_run", "export", "pretrain"]
