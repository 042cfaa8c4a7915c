"""Reports: the curve, the sheet of views and the page of a run."""

import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from simclr_tf import augment, cli, data, errors, report
from simclr_tf.commands import build
from simclr_tf.commands import run_page as run_page_command
from simclr_tf.report import analysis, charts, verdict
from simclr_tf.training.run_directory import RunDirectory

ROWS = [
    {"epoch": 1, "step": 10_000, "loss": 5.25, "contrastive_accuracy": 0.1, "images_per_second": 1},
    {"epoch": 2, "step": 20_000, "loss": 4.5, "contrastive_accuracy": 0.2, "knn_accuracy": 0.3},
]


def pixels(path):
    """RGB pixels of a picture, uint8."""
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize(
    "rows",
    [[], ROWS[:1], ROWS, [{"epoch": 1, "loss": float("nan")}, {"epoch": 2, "knn_accuracy": 0.5}]],
)
def test_a_curve_is_drawn_of_whatever_metrics_there_are(rows, tmp_path):
    """No epoch, one, rows without some metric, and a loss that is NaN."""
    report.draw_curve(rows, tmp_path / "curve.png", title="title")
    assert min(pixels(tmp_path / "curve.png").shape[:2]) > 300


def test_a_sheet_shows_the_image_then_its_views(tmp_path):
    """Without a zoom the pixels of images and views are those given, between white gaps."""
    images = np.random.default_rng(0).integers(0, 256, [2, 8, 8, 3], np.uint8)
    views = [np.full([2, 8, 8, 3], grey, np.float32) for grey in (0.0, 0.4)]
    report.draw_views(images, views, tmp_path / "new" / "views.png", zoom=1)
    sheet = pixels(tmp_path / "new" / "views.png")
    assert sheet.shape == (2 * 12, 3 * 12 + 6, 3)
    np.testing.assert_allclose(sheet[14:22, 2:10].astype(int), images[1], atol=1)
    assert (sheet[2:10, 20:28] == 0).all() and (sheet[2:10, 32:40] == 102).all()
    assert (sheet[:2] == 255).all() and (sheet[:, 12:18] == 255).all()
    report.draw_views(images, views, tmp_path / "views.png")
    np.testing.assert_array_equal(pixels(tmp_path / "views.png")[::2, ::2], sheet)


def test_images_that_are_not_square_are_shown_whole(tmp_path):
    """Landscape: as wide as a view, white above and below; padding outside the extent is left out.

    Views of several sizes stand in cells of the largest.
    """
    images = np.zeros([1, 20, 20, 3], np.uint8)
    images[0, 4:] = 255
    views = [tf.zeros([1, 16, 16, 3]), tf.zeros([1, 8, 8, 3])]
    report.draw_views(images, views, tmp_path / "v.png", zoom=1, extents=[[4, 8]])
    sheet = pixels(tmp_path / "v.png")
    assert sheet.shape == (20, 3 * 20 + 6, 3)
    assert (sheet[6:14, 2:18] == 0).all()
    assert (sheet[:6] == 255)[:, :20].all() and (sheet[14:] == 255)[:, :20].all()
    small = sheet[:, 46:]
    assert (small[6:14, 6:14] == 0).all() and (small == 0).sum() == 3 * 8 * 8


class Page(html.parser.HTMLParser):
    """The elements and the text of a page."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def check_self_contained(text):
    """Parses a page, and checks what holds for every page."""
    page = Page(text)
    assert len(text) < 5 * 2**20
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "data", "poster", "srcset"):
            value = attributes.get(name) or ""
            assert value.startswith(("data:", "#")) or not value, f"{tag} {name}={value[:60]}"
        assert "width" not in attributes or tag not in ("img", "svg", "table", "div")
    for picture in page.of("img"):
        assert picture["alt"] and picture["src"].startswith("data:image/")
    for svg in page.of("svg"):
        assert svg.get("aria-label") or svg.get("aria-hidden") == "true"
    assert all(each["aria-label"] for name, each in page.elements if each.get("role") == "img")
    assert not re.search(r"url\((?!#|\" \+ url)", text) and "@import" not in text
    assert "http:" not in text and "https:" not in text
    assert "prefers-color-scheme: dark" in text
    assert page.of("meta")[1]["content"] == "width=device-width, initial-scale=1"
    return page


@pytest.mark.parametrize("with_views", [True, False])
def test_a_page_needs_no_other_file(with_views, tmp_path):
    """Pictures are inside; flags are escaped; large numbers have no exponent."""
    directory = RunDirectory(tmp_path / "a run")
    directory.path.mkdir()
    if with_views:
        view = np.zeros([1, 8, 8, 3])
        report.draw_views(view, [view], directory.views)
    report.write_report(directory, ROWS, {"dataset": "folder:<b>", "seed": "0"})
    text = directory.report.read_text(encoding="utf-8")
    page = check_self_contained(text)
    assert len(page.of("img")) == with_views
    assert f"--flagfile='{directory.flags}'" in page.text
    assert "folder:<b>" in page.text and "<b>" not in text
    cells = re.findall(r"<td>([^<]*)</td>", text[text.index('class="numbers metrics"') :])
    assert cells[:6] == ["1", "10,000", "5.25", "0.1", "1", ""]
    assert cells[6:12] == ["2", "20,000", "4.5", "0.2", "", "0.3"]
    assert sorted(path.name for path in directory.path.iterdir()) == sorted(
        ["curve.png", "report.html"] + ["views.png"] * with_views
    )


def test_a_page_of_a_run_without_epochs(tmp_path):
    """A run that has trained nothing yet has flags only."""
    report.write_report(RunDirectory(tmp_path), [], {"seed": "0"})
    page = check_self_contained((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "no epoch has ended yet" in page.text and "--seed" in page.text


def run_page(rows=ROWS, flags=None, **details):
    """A `RunPage` of those rows."""
    return report.RunPage(
        details.pop("name", "a"), rows, {"seed": "0"} if flags is None else flags, "f", **details
    )


def rows_of(**columns):
    """Rows of metrics.jsonl from columns."""
    count = len(next(iter(columns.values())))
    return [
        {
            "epoch": n + 1,
            "step": 10 * (n + 1),
            **{key: column[n] for key, column in columns.items()},
        }
        for n in range(count)
    ]


def test_the_verdict_has_three_lines():
    """How far, what the loss says, what h is worth; the time is that of the steps."""
    rows = rows_of(loss=[6.0, 5.0], knn_accuracy=[0.25, 0.2449], images_per_second=[8.0, 4.0])
    run = run_page(rows, state="stopped", planned_epochs=9, batch_size=64, chance_loss=5.5)
    assert verdict.verdict(run) == [
        "Stopped: 2 of 9 epochs, 20 steps, 4.0 minutes of training steps.",
        "The loss went from 6.000 to 5.000; a model that has learnt nothing has 5.500.",
        "kNN accuracy is 24.5% (at best 25.0%).",
    ]
    assert verdict.warnings(run) == []


@pytest.mark.parametrize(
    ("columns", "details", "words"),
    [
        ({"loss": [5.6, 5.46]}, {"chance_loss": 5.5}, "no better than chance"),
        ({"loss": [5.6, 5.4]}, {"chance_loss": 5.5}, None),
        (
            {"loss": [5.6, 5.46]},
            {"chance_loss": 5.5, "flags": {"loss": "supervised"}},
            "Raise the temperature, lower the learning rate",
        ),
        ({"knn_accuracy": [0.2, 0.3, 0.26]}, {}, "kNN accuracy fell from 30.0% to 26.0%"),
        ({"knn_accuracy": [0.2, 0.3, 0.28]}, {}, None),
        ({"data_wait": [0.1, 0.3]}, {}, "30% of the time"),
        ({"data_wait": [0.3, 0.1]}, {}, None),
        ({"loss": [1.0]}, {"error": "TrainingError: nan"}, "ended with TrainingError: nan"),
    ],
)
def test_what_a_person_should_look_at(columns, details, words):
    """One sentence each, and none for a healthy run."""
    found = verdict.warnings(run_page(rows_of(**columns), **details))
    assert len(found) == (words is not None)
    assert words is None or words in found[0]


def test_charts_show_what_there_is():
    """A chart for each metric, also those of other callbacks; the chance line; words for each."""
    rows = rows_of(loss=[6.0, 5.0], rankme=[3.0, 9.0], data_wait=[0.5, float("nan")])
    drawn = charts.draw_charts([run_page(rows, chance_loss=5.5)])
    texts = [text for _, text in drawn]
    assert texts == [
        "Loss by epoch: loss from 6 to 5 loss; chance at 5.5.",
        "Effective dimensions by epoch: RankMe from 3 to 9 dimensions.",
        "Waiting for data by epoch: waiting from 50 to 50 % of the time.",
    ]
    for svg, _ in drawn:
        assert svg.startswith("<svg viewBox=") and "currentColor" in svg
        assert "<metadata" not in svg and "http" not in svg
    assert "chance" in drawn[0][0] and "chance" not in drawn[1][0]
    long = charts.draw_charts([run_page(rows_of(loss=list(np.arange(20_000.0))))])
    assert len(long[0][0]) < 60_000


def unit(values):
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def test_neighbours_similarities_and_outliers_against_loops():
    """What slow loops over the pairs of images find."""
    rng = np.random.default_rng(0)
    index, queries = rng.normal(size=[9, 3]), rng.normal(size=[4, 3])
    cosine = unit(queries) @ unit(index).T
    found = analysis.nearest_indices(index, queries, 2)
    for row, cosines in zip(found, cosine):
        assert list(row) == sorted(range(9), key=lambda i: -cosines[i])[:2]
    same = analysis.nearest_indices(index, index, 20, same=True)
    assert same.shape == (9, 8) and all(i not in row for i, row in enumerate(same))

    positive, negative = analysis.similarities(index[:4], queries)
    expected = [[float(a @ b) for b in unit(queries)] for a in unit(index[:4])]
    np.testing.assert_allclose(positive, [expected[i][i] for i in range(4)], atol=1e-6)
    others = [expected[i][j] for i in range(4) for j in range(4) if i != j]
    np.testing.assert_allclose(negative, others, atol=1e-6)

    means = []
    for i in range(9):
        cosines = sorted(float(unit(index)[i] @ unit(index)[j]) for j in range(9) if j != i)
        means.append(np.mean(cosines[-3:]))
    worst = analysis.outliers(index, count=2, k=3)
    assert [i for i, _ in worst] == list(np.argsort(means)[:2])
    np.testing.assert_allclose([value for _, value in worst], sorted(means)[:2], atol=1e-6)
    assert analysis.outliers(index[:1]) == []


def test_classes_and_confusions():
    """Weakest class first; only wrong predictions are confusions, most frequent first."""
    labels = np.array([0, 0, 0, 3, 3, 5])
    predicted = np.array([5, 5, 0, 3, 0, 5])
    assert analysis.class_accuracies(labels, predicted) == [(0, 1, 3), (3, 1, 2), (5, 1, 1)]
    assert analysis.confusions(labels, predicted) == [(0, 5, 2), (3, 0, 1)]
    assert analysis.confusions(labels, labels) == []


def test_a_map_keeps_groups_together():
    """Two groups that are far apart stay so, by t-SNE and by PCA; all images equal: no error."""
    rng = np.random.default_rng(0)
    for count, method in ((60, "t-SNE"), (20, "PCA")):
        groups = np.repeat([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], count, axis=0)
        points, name = analysis.map_2d(groups + 0.05 * rng.normal(size=groups.shape))
        assert name == method and points.min() == 0 and points.max() == 1
        centres = points[:count].mean(axis=0), points[count:].mean(axis=0)
        nearer = [np.linalg.norm(points - centre, axis=1) for centre in centres]
        assert ((nearer[0] < nearer[1]) == (np.arange(2 * count) < count)).all()
        again, _ = analysis.map_2d(
            groups + 0.05 * np.random.default_rng(0).normal(size=groups.shape)
        )
        assert again.shape == points.shape
    points, name = analysis.map_2d(np.ones([150, 3]))
    assert name == "PCA" and np.isfinite(points).all()


def test_duplicate_pairs_are_those_of_a_loop():
    """Every pair, across the blocks that are compared at a time."""
    from simclr_tf.evaluate import (
        count_near_duplicates,
        duplicates,
        near_duplicate_pairs,
        small_grey,
    )

    images = np.random.default_rng(0).integers(0, 256, [6, 16, 16, 3], np.uint8)
    small = small_grey(images[[0, 1, 2, 0, 3, 1, 4, 0]])
    pairs = [
        (i, j)
        for i in range(8)
        for j in range(i + 1, 8)
        if count_near_duplicates(small[i : i + 1], small[j : j + 1])
    ]
    assert near_duplicate_pairs(small) == pairs == [(0, 3), (0, 7), (1, 5), (3, 7)]
    assert near_duplicate_pairs(small, limit=2) == pairs[:2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_TEST_ROWS", 3)
        assert near_duplicate_pairs(small) == pairs


def color_encoder(images):
    """Mean colour: a good encoder for the images of `colored`."""
    return tf.reduce_mean(images, axis=[1, 2])


def colored(path, side=8, train=120, test=60, labels=True):
    """A data set of three classes of noisy images by their colour; the first two are equal."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", train), ("test", test)):
        classes = np.arange(count) % 3
        pixels = rng.integers(0, 120, [count, side, side, 3])
        pixels[np.arange(count), :, :, classes] += 100
        if split == "train":
            pixels[3] = pixels[0]
        arrays[f"x_{split}"] = pixels.astype(np.uint8)
        if labels:
            arrays[f"y_{split}"] = classes
    np.savez(path, **arrays)
    return f"npz:{path}"


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Samples of an encoder that knows the classes."""
    name = colored(tmp_path_factory.mktemp("data") / "set.npz")
    train, test = data.load(name, "train"), data.load(name, "test")
    flip = augment.RandomFlip(0.5)
    return report.collect_samples(
        color_encoder, train, test, views=lambda images, view: flip(images, seed=view)
    )


def test_samples_hold_what_the_encoder_makes_of_images(samples):
    """Accuracies, predictions, similarities and duplicates of a case that is known."""
    assert samples.accuracies["encoder"] == 1.0
    np.testing.assert_array_equal(samples.predicted, samples.shown.labels)
    np.testing.assert_allclose(samples.positive, 1.0, atol=1e-5)  # a flip keeps the mean colour
    assert samples.negative.mean() < 0.99
    from simclr_tf.report.samples import find_duplicates

    assert find_duplicates(samples.train) == [(0, 3)]


def test_samples_of_one_split(tmp_path):
    """Without a test split an image is no neighbour of itself; without labels nothing is scored."""
    source = data.load(colored(tmp_path / "a.npz"), "train")
    found = report.collect_samples(lambda images: tf.random.normal([len(images), 4]), source)
    assert found.same and found.accuracies["encoder"] < 0.7
    source = data.load(colored(tmp_path / "b.npz", labels=False), "train")
    found = report.collect_samples(color_encoder, source, examples=10)
    assert found.accuracies == {} and found.predicted is None and len(found.shown.h) == 10
    page = check_self_contained(report.render([run_page(rows_of(loss=[1.0]), samples=found)]))
    assert "The images have no labels; h uses about" in page.text
    assert "Classes" not in page.text and "Nearest neighbours" in page.text


def test_features_that_are_not_finite_are_refused(tmp_path):
    """A page of them would show nothing; the run that made them keeps its curves."""
    source = data.load(colored(tmp_path / "a.npz", labels=False), "train")
    with pytest.raises(errors.ArgumentError, match="encoder must return finite numbers"):
        report.collect_samples(lambda images: color_encoder(images) / 0.0, source)
    samples, note = run_page_command.samples_of(
        lambda images: color_encoder(images) / 0.0, source, None, 9
    )
    assert samples is None and note.startswith("Without images: encoder must return")


def test_a_page_with_images(samples):
    """Every section is there, and its pictures have texts."""
    text = report.render([run_page(samples=samples, state="finished")])
    page = check_self_contained(text)
    for heading in ("Nearest neighbours", "Map", "Similarities", "Classes", "Likely duplicates"):
        assert heading in page.text
    assert "Outliers" in page.text and len(page.of("circle")) == 60
    assert len(page.of("img")) > 60 and "class 2" in page.text
    marks = [each.get("class") for each in page.of("img")]
    assert marks.count("right") >= 30  # all neighbours by the encoder


def test_a_page_of_several_runs(samples):
    """Last values side by side, the flags that differ, and every run of its own."""
    rows = rows_of(loss=[6.0, 5.0], knn_accuracy=[0.5, 0.25])
    runs = [
        run_page(name="first", flags={"seed": "0", "epochs": "2", "run_dir": "x"}, samples=samples),
        run_page(rows, name="second", flags={"seed": "1", "epochs": "2", "run_dir": "y"}),
    ]
    text = report.render(runs)
    page = check_self_contained(text)
    table = text[text.index("Side by side") : text.index("Training curves")]
    cells = re.findall(r"<td>([^<]*)</td>", table)
    assert cells[-3:] == ["--seed", "0", "1"]
    assert cells[:6] == ["first", "", "2", "4.5", "20.0%", "30.0%"]
    assert "The highest kNN accuracy at the end is that of first: 30.0%." in page.text
    assert page.text.count("How it was made") == 2 and ">second<" in text


CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
# Measures the page in a frame of a phone's width, and what it asks the network for.
FRAME = """<!doctype html><body><iframe width=360 height=700></iframe><pre id=out></pre><script>
var frame = document.querySelector("iframe");
frame.onload = function () {
  var page = frame.contentDocument, view = frame.contentWindow, found = {};
  found.overflow = page.documentElement.scrollWidth - page.documentElement.clientWidth;
  found.broken = [...page.images].filter(i => i.complete && !i.naturalWidth).length;
  found.requests = view.performance.getEntriesByType("resource").map(e => e.name)
    .filter(name => !name.startsWith("data:")).length;
  found.charts = [...page.querySelectorAll("figure svg")].filter(
    s => s.getBoundingClientRect().height > 50).length;
  var dot = page.querySelectorAll(".map circle")[7], thumb = page.getElementById("thumb");
  if (dot) {
    dot.dispatchEvent(new view.PointerEvent("pointerover", {bubbles: true, clientX: 350}));
    found.shown = thumb.style.display;
    found.at = thumb.style.backgroundPosition;
    found.right = thumb.getBoundingClientRect().right;
  }
  page.querySelectorAll("details").forEach(d => { d.open = true; });
  found.overflow_open = page.documentElement.scrollWidth - page.documentElement.clientWidth;
  document.getElementById("out").textContent = JSON.stringify(found);
};
frame.srcdoc = PAGE;
</script>"""


@pytest.mark.end_to_end
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("count", [1, 3])
def test_a_browser_renders_the_page(count, samples, tmp_path):
    """At 360 pixels nothing overflows; no picture is broken or requested; dots show images."""
    environment = {"versions": {"a": "1" * 200}, "command": "x" * 300}
    runs = [
        run_page(name=f"run-{n}-{'long' * 20}", samples=samples, environment=environment)
        for n in range(count)
    ]
    page = json.dumps(report.render(runs)).replace("</script>", "<\\/script>")
    (tmp_path / "frame.html").write_text(FRAME.replace("PAGE", page), encoding="utf-8")
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu"),
            *("--virtual-time-budget=10000", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom"),
            str(tmp_path / "frame.html"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = json.loads(html.unescape(re.search(r'<pre id="out">(.*?)</pre>', done.stdout)[1]))
    assert (found["overflow"], found["overflow_open"]) == (0, 0)
    assert (found["broken"], found["requests"]) == (0, 0)
    assert found["charts"] >= 3 + count - 1
    assert found["shown"] == "block" and found["at"] == "-672px 0px" and found["right"] <= 360


@pytest.fixture
def two_runs(tmp_path, quick_runs, one_layer):
    """The directory of two runs on an npz file, which differ in their rate, as their flags say."""
    flags = ["--batch_size=60", "--epochs=2", "--precision=float32", "--optimizer=sgd"]
    flags += [f"--dataset={colored(tmp_path / 'set.npz')}", f"--run_dir={tmp_path / 'a'}"]
    assert cli.main(["pretrain", *flags, "--learning_rate=0.1"]) == 0
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    other = tmp_path / "b" / "flags.cfg"
    other.write_text(other.read_text().replace("learning_rate=0.1", "learning_rate=0.2"))
    return tmp_path


@pytest.mark.end_to_end
def test_the_command_writes_the_pages_of_runs(two_runs, capsys):
    """A run has its page from the start; the command renews it, or sets several side by side."""
    runs = [str(two_runs / name) for name in "ab"]
    page = check_self_contained((two_runs / "a" / "report.html").read_text(encoding="utf-8"))
    assert "Finished: 2 of 2 epochs, 4 steps" in page.text and "similarities of z" in page.text
    assert "Environment" in page.text and "a model that has learnt nothing has 4.779" in page.text
    (two_runs / "a" / "report.html").unlink()
    assert cli.main(["report", f"--run_dir={runs[0]}/"]) == 0
    assert capsys.readouterr().out.endswith(f"report: {two_runs / 'a' / 'report.html'}\n")
    again = check_self_contained((two_runs / "a" / "report.html").read_text(encoding="utf-8"))
    assert again.text[:300] == page.text[:300]

    output = two_runs / "new" / "both.html"
    flags = [f"--run_dir={runs[0]}, {runs[1]}/", f"--output={output}", "--examples=30"]
    assert cli.main(["report", *flags]) == 0
    both = check_self_contained(output.read_text(encoding="utf-8"))
    assert "--learning_rate 0.1 0.2" in both.text and len(both.of("circle")) == 60

    (two_runs / "set.npz").unlink()
    assert cli.main(["report", f"--run_dir={runs[1]}"]) == 0
    without = check_self_contained((two_runs / "b" / "report.html").read_text(encoding="utf-8"))
    assert "Without images: " in without.text and "set.npz" in without.text
    assert "kNN accuracy" in without.text and not without.of("circle")


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "report needs --run_dir."),
        (["--run_dir=a"], "--run_dir must be the directory of a run; a has no flags.cfg."),
        (["--run_dir=a,b"], "several runs need --output, a file for their page; got --run_dir=a,b"),
        (["--run_dir=a", "--output=x.pdf"], "--output must end in .html; got 'x.pdf'."),
        (["--run_dir=a,b", "--output=x.html"], "--run_dir must be the directory of a run; a has"),
        (["--run_dir=a", "--output=/proc/x/y.html"], "/proc/x/y.html cannot be written"),
    ],
)
def test_mistakes(flags, message, tmp_path, monkeypatch, capsys):
    """One line, exit code 2, and no file."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", *flags]) == 2
    assert capsys.readouterr().err.startswith(f"simclr-tf: {message}")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("one_layer")
def test_chance_losses_of_the_methods(tmp_path):
    """Those of the model that the flags describe."""
    for flags in ([], ["--method=moco"], ["--method=moco", "--queue_size=64"], ["--method=looc"]):
        arguments = ["pretrain", "--width=0.0625", *flags, f"--run_dir={tmp_path}"]
        options = cli.options_of(cli.parse(arguments)[1])
        expected = build.chance_loss(options, build.build_model(options, 8))
        assert run_page_command._chance_loss(options, "pretrain", None) == expected
    assert run_page_command._chance_loss(options, "finetune", 10) == pytest.approx(np.log(10))
