"""The flags of the commands, in groups that several commands share.

Each function takes a `_flags.Define`. Which groups a command has is in `cli`, which alone reads
their values; nothing here needs TensorFlow.
"""

from __future__ import annotations

MAX_SIDE = 8192  # of images, pixels; beyond that, a batch of them exceeds any memory
_SIDE = (1, MAX_SIDE)
COLOR_DROP_PROBABILITY = 0.2
COLOR_JITTER_PROBABILITY = 0.8


def define_common(define):
    """Flags of every command."""
    define.string("run_dir", None, "Directory of the run.")
    define.boolean("debug", False, "Show the traceback of every error.")


def define_data(define):
    """The data set and its splits."""
    define.string(
        "dataset",
        "shapes",
        "shapes (drawn in code), folder:PATH, npz:PATH, tfrecord:GLOB, tar:GLOB (as WebDataset), "
        "or any TFDS name; or shapes_by_class, shapes_by_color and shapes_by_orientation, one "
        "drawing, three labels.",
    )
    define.string("data_dir", None, "Directory of the TFDS data sets.")
    define.string("train_split", "train", "Split to train on, slices as in TFDS: train[:90%].")
    define.string("test_split", "test", "Labelled split for the kNN probe and `evaluate`.")
    define_images(define)


def define_images(define):
    """The images and how they are kept."""
    define.integer(
        "image_size",
        None,
        "Side of the images in pixels; by default that of the data, or 224.",
        *_SIDE,
    )
    define.integer(
        "source_size",
        None,
        "Longer side at which photographs are kept to crop views from; by default 1.5 x the image "
        "size. Larger: sharper small crops, more memory.",
        *_SIDE,
    )
    define.float(
        "max_corrupt_share",
        0.01,
        "Fraction of unreadable images above which a run stops.",
        0.0,
        1.0,
    )
    define.float("cache_gigabytes", 2.0, "A data set up to this size is kept in memory.", 0.0, 1e6)
    define.string(
        "index_cache",
        None,
        "Directory in which the headers of 10,000 image files or more are kept for the next start; "
        "by default RUN_DIR/index.",
    )


def define_network(define):
    """The encoder."""
    define.string(
        "encoder",
        "resnet",
        "resnet (see --resnet_depth), airbench (for small images on a CPU), keras_cv/NAME or "
        "keras_applications/NAME, such as keras_applications/efficientnetv2_b0; "
        "simclr_tf.encoders.names() lists all.",
    )
    define.enum(
        "resnet_depth", "18", ["14", "18", "34", "50", "101", "152", "200"], "Layers of the ResNet."
    )
    define.float("width", 1.0, "Width multiplier of a ResNet or of airbench, above 0.", 1e-3)
    define.float("sk_ratio", 0.0, "Above 0: selective kernels (SimCLRv2: 0.0625).", 0.0)
    define.enum(
        "stem",
        "auto",
        ["auto", "cifar", "imagenet", "space_to_depth"],
        "First layers of the ResNet. auto: cifar up to 64 pixels, imagenet above; space_to_depth: "
        "2x2 pixels become one with 12 channels, a quarter of the arithmetic of cifar.",
    )
    define.integer(
        "feature_dim",
        None,
        "Length of h of a ResNet or of airbench, by a last 1x1 convolution; by default the filters "
        "of its last group.",
        1,
    )


def define_model(define):
    """The encoder, the projection head and the loss."""
    define_network(define)
    define.integer("projection_dim", 128, "Length of z; without a head that of h.", 1)
    define.integer(
        "projection_hidden_dim",
        None,
        "Width of the head's hidden layers; by default that of h.",
        1,
    )
    define.integer(
        "projection_layers",
        2,
        "Layers of the head: 2 or 3 with ReLU between them; 1: a linear head; 0: none, z is h.",
        0,
        3,
    )
    define.enum(
        "loss",
        "nt_xent",
        ["nt_xent", "decoupled", "supervised"],
        "decoupled: without the positive in the denominator, for small batches; supervised: all "
        "views of a class are positives.",
    )
    define.float("temperature", 0.1, "Temperature of the loss, above 0.", 1e-6)
    define.boolean(
        "normalize",
        True,
        "Cosine similarity in the loss; false: dot products, for which the paper has temperatures "
        "of 10 and 100.",
    )


def define_method(define):
    """The method and what only one method takes."""
    define.enum(
        "method",
        "simclr",
        ["simclr", "moco", "looc"],
        "simclr; moco: a momentum encoder and a queue of earlier keys as negatives, for small "
        "batches; looc: h keeps what the augmentations --kept change.",
    )
    define.integer("queue_size", None, "moco: keys in the queue; by default 4096.", 0)
    define.float(
        "encoder_momentum",
        None,
        "moco: momentum of the average of the encoder's weights; by default 0.99.",
        0.0,
        0.999999,
    )
    define.boolean(
        "symmetric", None, "moco: whether both views are queries, not the first alone; by default."
    )
    define.boolean(
        "in_batch_negatives",
        None,
        "moco: the form of SimCLRv2, NT-Xent with the queue as further negatives.",
    )
    define.string(
        "kept",
        None,
        "looc: augmentations joined by commas, such as color,rotate90; also crop, flip, blur, and "
        "those of --augmentations; by default color.",
    )


def define_init_from(define):
    """Weights to start from."""
    define.string(
        "init_from",
        None,
        "Start a new run from the weights of a run, an exported SavedModel, or a SavedModel or "
        "checkpoint of the official SimCLR code; the step and the optimizer start anew.",
    )


def define_views(define):
    """The random views."""
    define.string(
        "views",
        None,
        "Views of each image: COUNTxSIZE, ..., with the areas of the crops behind an @ if they are "
        "not --min_crop_area to --max_crop_area; 2x32,4x16@0.1-0.35 is two views of 32 pixels and "
        "four of 16 from small crops. Every pair of them is a positive pair. The other flags of "
        "views apply to all. By default two of the image size.",
    )
    _define_colors(define)
    define.float(
        "min_crop_area", 0.08, "Minimum area of a crop, as a fraction of the image.", 1e-4, 1.0
    )
    define.float(
        "max_crop_area", 1.0, "Maximum area of a crop, as a fraction of the image.", 1e-4, 1.0
    )
    define.enum(
        "blur", "auto", ["auto", "yes", "no"], "Blur; auto: if the largest view is above 64 pixels."
    )
    define.string(
        "augmentations",
        None,
        "In place of the paper's family: operators in their order, such as crop,flip,color_jitter; "
        "also color_drop, blur, cutout, gaussian_noise, rotate90, sobel and solarize. sobel:0.5 is "
        "applied with a probability of 0.5.",
    )
    define.enum(
        "transformed_views",
        "both",
        ["both", "one"],
        "one: both views are the same random crop, and the augmentations change the second alone, "
        "as in figure 5 of the paper.",
    )
    define.string(
        "view_sizes",
        None,
        "Smaller views in the early epochs: side:end, ..., ends as fractions of the epochs; "
        "16:0.5,24:0.8,32:1 is 16 pixels for the first half, 32 for the last fifth.",
    )


def _define_colors(define):
    """How strongly and how often a view changes colour."""
    define.float(
        "color_jitter_strength",
        None,
        "Strength of the colour jitter; by default 1.0, and 0.5 up to 64 pixels.",
        0.0,
    )
    define.float(
        "color_jitter_probability",
        COLOR_JITTER_PROBABILITY,
        "Fraction of the views with colour jitter.",
        0.0,
        1.0,
    )
    define.float(
        "color_drop_probability",
        COLOR_DROP_PROBABILITY,
        "Fraction of the views that are grey.",
        0.0,
        1.0,
    )


def define_whitening(define):
    """The last layer of the encoder that is computed after training."""
    define.boolean(
        "whitening",
        False,
        "Whiten h: an affine last layer of the encoder, measured on training images without labels "
        "after the last epoch. Exports, embed and evaluate have it.",
    )
    define.float(
        "whitening_floor",
        0.05,
        "Smallest variance that it divides by, as a fraction of the mean variance, above 0.",
        1e-9,
    )
    define.integer(
        "whitening_examples", 50_000, "Training images that it is measured on, evenly spaced.", 2
    )


def define_training(define):
    """Epochs, batches, optimizer and the kNN probe."""
    define.integer("epochs", 100, "Passes over the data.", 1)
    define.integer("train_steps", None, "Steps to take; overrides --epochs.", 1)
    define.integer("batch_size", 512, "Images per step, over all devices.", 2)
    define.enum("optimizer", "lars", ["lars", "lamb", "sgd", "adamw"], "Optimizer.")
    define.float("learning_rate", 0.3, "Peak rate, before scaling, above 0.", 1e-12)
    define_learning_rate_scaling(define, "linear")
    define.float("warmup_epochs", None, "By default a tenth of the epochs, 10 at most.", 0.0)
    define.float("weight_decay", 1e-6, "Weight decay; biases and norms take none.", 0.0)
    define.float("momentum", 0.9, "Momentum of lars and sgd.", 0.0, 0.9999)
    define.float(
        "weight_average",
        0.0,
        "Momentum of an exponential moving average of the weights, which is then evaluated and "
        "exported, such as 0.99; 0: none. For --method=simclr.",
        0.0,
        0.999999,
    )
    define.integer("micro_batch_size", None, "Views per micro-batch; by default all at once.", 1)
    define_execution(define)
    define.integer(
        "probe_every_epochs", 0, "Epochs between kNN probes; 0: ten in a run; -1: none.", -1
    )
    define.integer("probe_examples", 5000, "Examples of each split that the probe uses.", 1)
    define.string(
        "probe_protocols", "knn", "Probes during training, joined by commas: knn, linear, or both."
    )
    define.string(
        "probe_dataset",
        None,
        "Labelled data set of the probes, as for --dataset; by default that of the run.",
    )
    define.string(
        "probe_train_split", None, "Split of --probe_dataset to fit on; by default train."
    )
    define.string("probe_test_split", None, "Split of --probe_dataset to score; by default test.")
    define.string(
        "milestones",
        None,
        "Stop where a metric of metrics.jsonl has not reached a value by an epoch: "
        "'knn_accuracy>=0.4@10,loss<=5@20', in quotes in a shell.",
    )


def define_learning_rate_scaling(define, default):
    """How the learning rate depends on the batch size."""
    define.enum(
        "learning_rate_scaling",
        default,
        ["linear", "sqrt", "none"],
        "linear: rate x batch / 256; sqrt: rate x sqrt(batch); none.",
    )


def define_execution(define):
    """How a run is computed, not what is learnt."""
    define.integer(
        "steps_per_execution",
        0,
        "Steps per Python call; 0 chooses by device: 1 on a CPU.",
        0,
    )
    define.integer(
        "checkpoint_every_steps",
        1000,
        "Steps between checkpoints within an epoch; each epoch ends with one anyway.",
        1,
    )
    define.integer("seed", 0, "Seed of weights, order and views.", 0, 2**31 - 1)
    define.boolean("deterministic", False, "Only bit-reproducible kernels; may be slower.")
    define.enum(
        "precision",
        "auto",
        ["auto", "float32", "bfloat16", "float16"],
        "auto: bfloat16 where the device computes in it.",
    )
    define.enum(
        "strategy",
        "auto",
        ["auto", "one", "mirrored", "multi_worker", "tpu"],
        "How to use the devices; auto: all GPUs of this machine.",
    )
    define.string("tpu", None, "Name or address of the TPU.")


def define_finetune(define):
    """The flags of finetune."""
    define.string(
        "pretrained",
        None,
        "A run, an exported SavedModel, or a SavedModel or checkpoint of the official SimCLR code.",
    )
    define.string("dataset", None, "As for pretrain; by default that of the pretrained run.")
    define.string("data_dir", None, "By default that of the pretrained run.")
    define.string("train_split", None, "By default that of the pretrained run, or train.")
    define.string("test_split", None, "By default that of the pretrained run, or test.")
    define_images(define)
    define.float(
        "label_fraction",
        None,
        "Fraction of the labels of each class to train on, such as 0.01; by default all.",
        1e-9,
        1.0,
    )
    define.integer("labels_per_class", None, "Instead: labels of each class to train on.", 1)
    define.boolean(
        "from_scratch", False, "Also train the same network without pretraining, to compare."
    )
    define.integer(
        "head_layer",
        0,
        "What the logits are on: 0: h; 1: the first hidden layer of the projection head.",
        0,
        2,
    )
    define.string(
        "train_from",
        None,
        "First block of the encoder to train, such as group3; by default all are trained.",
    )
    _define_schedule_of_finetune(define)
    define_execution(define)


def _define_schedule_of_finetune(define):
    define.integer(
        "epochs",
        None,
        "By default 60 x 2**-log10(labels / 12,811), at least 30, as in the paper.",
        1,
    )
    define.integer(
        "batch_size", 256, "Largest number of images per step; it is made to divide the labels.", 1
    )
    define.enum("optimizer", "nesterov", ["nesterov", "lars", "adamw"], "Optimizer.")
    define.float("learning_rate", 0.05, "Rate at the start, before scaling, above 0.", 1e-12)
    define.float(
        "learning_rate_from_scratch",
        None,
        "That of --from_scratch, which often needs a higher one; by default the same.",
        1e-12,
    )
    define_learning_rate_scaling(define, "linear")
    define.float("weight_decay", 0.0, "Weight decay; biases and norms take none.", 0.0)
    define.float("label_smoothing", 0.0, "Label smoothing.", 0.0, 0.999)
    define.float(
        "min_crop_area", 0.08, "Minimum area of a crop, as a fraction of the image.", 1e-4, 1.0
    )


def define_distill(define):
    """The flags of distill besides the student."""
    define.string("teacher", None, "A run of finetune or distill, or the export of one.")
    define.string("dataset", None, "Its images need no labels; by default that of the teacher.")
    define.string("data_dir", None, "By default that of the teacher.")
    define.string("train_split", None, "By default that of the teacher, or train.")
    define.string("test_split", None, "By default that of the teacher, or test.")
    define_images(define)
    define.float(
        "label_weight",
        0.0,
        "Weight of the cross-entropy with labels, in [0, 1]; the teacher's is 1 - it.",
        0.0,
        1.0,
    )
    define.float(
        "label_fraction",
        None,
        "Fraction of the labels of each class to use; by default all.",
        1e-9,
        1.0,
    )
    define.integer("labels_per_class", None, "Instead: labels of each class to use.", 1)
    define.float("distillation_temperature", 1.0, "Temperature of both probabilities.", 1e-6)
    define.integer("epochs", 100, "Passes over the images.", 1)
    define.integer("train_steps", None, "Steps to take; overrides --epochs.", 1)
    define.integer("batch_size", 256, "Images per step, over all devices.", 1)
    define.enum("optimizer", "nesterov", ["nesterov", "lars", "adamw"], "Optimizer.")
    define.float("learning_rate", 0.1, "Rate at the start, before scaling, above 0.", 1e-12)
    define_learning_rate_scaling(define, "linear")
    define.float("weight_decay", 1e-4, "Weight decay; biases and norms take none.", 0.0)
    define.float(
        "min_crop_area", 0.08, "Minimum area of a crop, as a fraction of the image.", 1e-4, 1.0
    )
    define_execution(define)


def define_student(define):
    """The student of distill."""
    define_network(define)
    define_init_from(define)


def define_encoder(define):
    """A trained encoder and the images for it."""
    define.string(
        "saved_model",
        None,
        "Instead of --run_dir: an exported SavedModel, or a directory of numbered ones.",
    )
    define.string(
        "official_weights",
        None,
        "Instead of --run_dir: a SavedModel or checkpoint of the official SimCLR code.",
    )
    define.string("dataset", None, "As for pretrain; by default the run's.")
    define.string("data_dir", None, "By default the run's.")
    define.integer(
        "image_size", None, "Side of the images in pixels; by default the encoder's.", *_SIDE
    )
    define.float(
        "max_corrupt_share",
        None,
        "Fraction of unreadable images at which it stops; by default the run's, or 0.01.",
        0.0,
        1.0,
    )
    define.integer("batch_size", 256, "Images at a time.", 1)


def define_evaluate(define):
    """What evaluate scores, and where it writes."""
    define.string(
        "protocol",
        None,
        "By default knn, and for a fine-tuned model the accuracy of its own classifier. One or "
        "several of knn, linear (logistic regression on stored features) and linear_views "
        "(a linear layer on crops and flips, as the paper trains it), joined by commas; all: knn "
        "and linear.",
    )
    define.string(
        "output",
        None,
        "Directory for a table (CSV, Markdown, JSON) over the data sets of --dataset=a,b,c.",
    )
    define.string(
        "cache_dir",
        None,
        "Directory in which features are kept; by default OUTPUT/features with --output, else "
        "none is.",
    )
    define.string(
        "layer",
        None,
        "Layer to score: h, whitened, head1, ..., z, or one as for export; several joined by "
        "commas; all: h, whitened and every layer of the projection head; spaces: of a run of "
        "looc, z with each space at length 1. By default h, and whitened too if the run has it.",
    )
    define.boolean("baselines", False, "Also raw pixels and, for a run, a random encoder.")
    define.string("train_split", None, "By default the run's, or train.")
    define.string("test_split", None, "By default the run's, or test.")


def define_protocols(define):
    """The settings of the protocols."""
    define.integer(
        "knn_k", 200, "Neighbours of the weighted kNN; all images where there are fewer.", 1
    )
    define.float("knn_temperature", 0.1, "Temperature of its weights.", 1e-6)
    define.string(
        "knn_views",
        "1",
        "Views whose features kNN averages: 1, flip, or crops:N with N up to 10.",
    )
    define.boolean("knn_whiten", False, "kNN on ZCA-whitened features.")
    define.integer(
        "seeds", 1, "Repetitions of the linear protocols, for a 95 % confidence interval.", 1, 1000
    )
    define.integer("linear_views_epochs", 90, "Epochs of linear_views.", 1)
    define.integer("linear_views_batch_size", 256, "Images per step of linear_views.", 1)
    define.enum(
        "linear_views_optimizer", "nesterov", ["nesterov", "lars"], "Optimizer of linear_views."
    )
    define.float(
        "linear_views_learning_rate", 0.1, "Its peak rate, for a batch of 256, above 0.", 1e-12
    )


def define_embed(define):
    """The flags of embed."""
    define.string("output", None, "File to write: .npz, .parquet or .tfrecord; it must not exist.")
    define.string("split", None, "By default the run's --train_split, or train.")
    define.string(
        "layer",
        None,
        "Layer whose output is written, as for evaluate; by default whitened if the run has it, "
        "else h.",
    )


def define_export(define):
    """The flags of export."""
    define.string("output", None, "Path to write: encoder/1, or encoder.tflite; it must not exist.")
    define.enum(
        "format",
        "saved_model",
        ["saved_model", "tflite"],
        "saved_model: a directory for TF Serving, tensorflow-hub and Keras; tflite: a file.",
    )
    define.enum(
        "precision",
        "float32",
        ["float32", "float16", "int8"],
        "Precision of the signatures' weights and arithmetic; int8 is for tflite, with ranges "
        "measured on training images.",
    )
    define.string(
        "layer",
        None,
        "Layer to export: h; whitened, the default of a run with --whitening; group1 to group4 or "
        "a block such as group3_block2, averaged over the image; head1, ..., or z, of the "
        "projection head; spaces, of a run of looc.",
    )
    define.boolean("normalize", False, "Scale each embedding to length 1.")
    define.string(
        "data_dir", None, "For int8: directory of the TFDS data sets; by default the run's."
    )
    define.integer("examples", 200, "For int8: training images to measure the ranges on.", 1)


def define_preview(define):
    """The flags of preview besides those of pretrain, whose recipe it shows."""
    define.string(
        "output", "preview.png", "PNG file to write: images, views, and each operator alone."
    )
    define.string(
        "write_recipe",
        None,
        "Flag file to write, for `simclr-tf pretrain --flagfile=`; it must not exist.",
    )
    define.integer(
        "measure_steps",
        3,
        "Training steps to measure time and memory with, after one that is not counted; 0: none.",
        0,
        1000,
    )
    define.boolean("debug", False, "Show the traceback of every error.")


def define_report(define):
    """The flags of report."""
    define.string(
        "output",
        None,
        "HTML file to write; by default RUN_DIR/report.html for one run. --run_dir takes several "
        "runs, joined by commas.",
    )
    define.string("data_dir", None, "Directory of the TFDS data sets; by default the run's.")
    define.integer(
        "examples",
        500,
        "Images of each split that the page is about; 0: no images, only curves and tables.",
    )


def define_runs(define):
    """The flags of runs."""
    define.string("under", None, "Directory to search for run directories, at any depth.")
    define.string(
        "best",
        None,
        "Only runs with this metric, best first, by its last value: knn_accuracy, loss, or another "
        "key of metrics.jsonl.",
    )
    define.enum(
        "format",
        "table",
        ["table", "json"],
        "table: for reading; json: one JSON object a line, with all metrics.",
    )
    define.boolean("debug", False, "Show the traceback of every error.")


STUDIES = (
    *("batch_epochs", "composition", "head", "predict_transformation", "strength"),
    "temperature",
)


def define_study(define):
    """The flags of study besides those of its runs."""
    define.string("study", None, f"NAME, the first word: {', '.join(STUDIES)}.")
    define.string("out", None, "Directory of the study, with its runs, table and picture.")
    define.enum("protocol", "linear", ["linear", "knn"], "How the features of each run are scored.")
    define.boolean("debug", False, "Show the traceback of every error.")


def define_runs_of_study(define):
    """Defines the flags of pretrain without defaults, which are the study's."""
    define = _WithoutDefaults(define)
    groups = (define_data, define_model, define_method, define_views, define_training)
    for group in (*groups, define_whitening):
        group(define)


class _WithoutDefaults:
    """A `_flags.Define` whose flags have no value unless one is given."""

    def __init__(self, define):
        self._define = define

    def __getattr__(self, kind):
        def define(name, default, *rest):
            getattr(self._define, kind)(name, None, *rest)

        return define
