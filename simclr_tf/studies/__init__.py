"""The paper's ablations: settings of `simclr-tf pretrain`, with a table and a picture of results.

study: what a study is, and what all of them share. One file for each study. figures: the pictures.
runner: trains and scores the settings. processes: commands in processes of their own. Training
imports nothing of this.
"""

from simclr_tf.studies.batch_epochs import BATCH_EPOCHS
from simclr_tf.studies.composition import COMPOSITION
from simclr_tf.studies.head import HEAD
from simclr_tf.studies.predict_transformation import PREDICT_TRANSFORMATION
from simclr_tf.studies.runner import Runner
from simclr_tf.studies.strength import STRENGTH
from simclr_tf.studies.study import Setting, Study
from simclr_tf.studies.temperature import TEMPERATURE

# By the names of `simclr-tf study NAME`.
STUDIES = {
    "batch_epochs": BATCH_EPOCHS,
    "composition": COMPOSITION,
    "head": HEAD,
    "predict_transformation": PREDICT_TRANSFORMATION,
    "strength": STRENGTH,
    "temperature": TEMPERATURE,
}

__all__ = ["STUDIES", "Runner", "Setting", "Study"]
