"""Writes a fine-tuned classifier as a SavedModel, which is an encoder's with class outputs."""

from __future__ import annotations

import tensorflow as tf

from simclr_tf.errors import ArgumentError
from simclr_tf.export.functional import functional_logits
from simclr_tf.export.saved_model import write_saved_model
from simclr_tf.export.serving import ClassOutputs


def export_classifier(classifier, path, class_names=None, precision="float32"):
    """Writes a classifier as a SavedModel with signatures from images to classes and embeddings.

    The directory is that of `export_encoder` for the classifier's encoder: the same signatures,
    `encoder.keras`, warm-up requests, and the check in a separate process before it is renamed to
    `path`. Besides `embedding`, h [batch, D], every signature returns

    - `logits` and `probabilities`, float32 [batch, C];
    - `class_index`, int64 [batch], the class of the highest probability;
    - `class_name`, string [batch], its name.

    `encoder.json` has the names as "class_names". `load_exported` loads it as an encoder whose
    `classify` returns these outputs.

    Args:
      classifier: a built `models.Classifier`.
      path: a directory that does not exist yet, such as "classifier/1"; the write is atomic.
      class_names: list of C strings; None is "0", "1", ...
      precision: as in `export_encoder`; the layers from h to the logits stay float32.

    Returns:
      The path, a `pathlib.Path`.

    Raises:
      ArgumentError: another number of names; and as `export_encoder`, like the other errors.

    Example:

    >>> model = simclr_tf.Classifier(encoder, num_classes=2)
    >>> model.build((None, 32, 32, 3))
    >>> path = simclr_tf.export.export_classifier(model, "classifier/1", ["cat", "dog"])
    >>> simclr_tf.export.load_exported(path).classify(images)["probabilities"].shape
    TensorShape([8, 2])
    """
    if class_names is None:
        class_names = [str(index) for index in range(classifier.num_classes)]
    class_names = [str(name) for name in class_names]
    if len(class_names) != classifier.num_classes:
        raise ArgumentError(
            f"class_names must be one for each of the {classifier.num_classes} classes; got "
            f"{len(class_names)}."
        )

    def expected(images):
        logits = classifier(images, training=False)
        h = tf.cast(classifier.encoder(images, training=False), tf.float32)
        return {"embedding": h, "logits": logits, "probabilities": tf.nn.softmax(logits)}

    return write_saved_model(
        classifier.encoder,
        path,
        classifier.image_shape,
        precision=precision,
        top=ClassOutputs(functional_logits(classifier), class_names),
        expected_of=expected,
        metadata={"class_names": class_names, "head_layer": classifier.head_layer},
    )
