"""The template of a page, for jinja2: it reads well without a script, in the dark and when narrow.

The script shows the thumbnails of the map; all else needs none.
"""

STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --back: #fff; --soft: #f2f2f0; --line: #d5d5d0;
  --good: #1a7f37; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e6e3; --back: #161616; --soft: #242424;
  --line: #444; --good: #5fd07f; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back);
  max-width: 70rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.25rem; margin-top: 2rem; }
h3 { font-size: 1rem; margin: 1rem 0 .3rem; }
.verdict { border-left: .3rem solid var(--line); padding: .2rem 0 .2rem 1rem; }
.verdict p { margin: .2rem 0; } .bad { color: var(--bad); } .soft { opacity: .8; font-size: .9rem; }
.charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
figure { margin: 0; } figure svg { width: 100%; height: auto; display: block; }
figcaption { font-size: .85rem; opacity: .8; }
img { max-width: 100%; height: auto; } .views { background: #fff; }
.thumbs { display: flex; flex-wrap: wrap; gap: .3rem; align-items: center; margin: .2rem 0 .6rem; }
.thumbs img { width: 3rem; height: 3rem; object-fit: cover; image-rendering: auto; border: 3px solid transparent; }
.thumbs img.right { border-color: var(--good); } .thumbs img.wrong { border-color: var(--bad); }
.thumbs img.wrong { border-style: dashed; }
.one { max-width: 30rem; }
.row { border-top: 1px solid var(--line); padding: .4rem 0; }
.both { display: grid; gap: 0 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; } td, th { padding: .15rem .9rem .15rem 0; text-align: left;
  vertical-align: top; } .numbers td, .numbers th { text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; } .numbers td:first-child, .numbers th:first-child { text-align: left; }
.flags td { font-family: ui-monospace, monospace; font-size: .85rem; }
code { background: var(--soft); padding: .1rem .3rem; } summary { cursor: pointer; margin: .5rem 0; }
.bar { background: var(--soft); display: block; width: 100%; min-width: 6rem; }
.bar span { display: block; height: .9rem; background: #4c8fd6; }
.map { max-width: 40rem; } .map circle { stroke: var(--back); stroke-width: .4; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; list-style: none; padding: 0; }
.legend span { display: inline-block; width: .8rem; height: .8rem; border-radius: 50%; }
#thumb { position: fixed; pointer-events: none; width: 96px; height: 96px; display: none;
  border: 2px solid var(--text); background-repeat: no-repeat; }
"""

SCRIPT = """
(function () {
  var thumb = document.createElement("div"); thumb.id = "thumb"; document.body.appendChild(thumb);
  document.querySelectorAll(".map").forEach(function (map) {
    var columns = +map.dataset.columns, rows = +map.dataset.rows, side = 96;
    var url = map.querySelector("img.sprite").src;
    function show(event) {
      var dot = event.target;
      if (dot.tagName !== "circle") { thumb.style.display = "none"; return; }
      var i = +dot.dataset.i;
      thumb.style.backgroundImage = "url(" + url + ")";
      thumb.style.backgroundSize = columns * side + "px " + rows * side + "px";
      thumb.style.backgroundPosition = -(i % columns) * side + "px " + -Math.floor(i / columns) * side + "px";
      thumb.style.left = Math.max(0, Math.min(event.clientX + 12, innerWidth - side - 8)) + "px";
      thumb.style.top = Math.max(0, Math.min(event.clientY + 12, innerHeight - side - 8)) + "px";
      thumb.style.display = "block";
    }
    var svg = map.querySelector("svg");
    svg.addEventListener("pointerover", show);
    svg.addEventListener("pointerdown", show);
    svg.addEventListener("pointerleave", function () { thumb.style.display = "none"; });
  });
})();
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style|safe }}</style>
</head>
<body>
<h1>{{ title }}</h1>
{% macro verdict(run) -%}
<div class="verdict">
{% for line in run.verdict %}<p>{{ line }}</p>
{% endfor %}</div>
{% for line in run.warnings %}<p class="bad">To look at: {{ line }}</p>
{% endfor %}
{%- endmacro %}
{% macro chart(svg, text) -%}
<figure><div role="img" aria-label="{{ text }}">{{ svg|safe }}</div></figure>
{%- endmacro %}
{% macro thumbs(pictures) -%}
<div class="thumbs">{% for each in pictures -%}
<img src="{{ each.url }}" alt="{{ each.text }}" title="{{ each.text }}" class="{{ each.mark }}">
{%- endfor %}</div>
{%- endmacro %}
{% if compared -%}
<h2>Side by side</h2>
{% if compared.best %}<p>{{ compared.best }}</p>{% endif %}
<div class="scroll"><table class="numbers">
<tr>{% for cell in compared.head %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in compared.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
<h3>Flags that differ</h3>
{% if compared.flags -%}
<div class="scroll"><table class="flags">
<tr><th></th>{% for run in runs %}<th>{{ run.name }}</th>{% endfor %}</tr>
{% for name, values in compared.flags %}<tr><td>--{{ name }}</td>
{%- for value in values %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{%- else %}<p>None but --run_dir.</p>{% endif %}
<h2>Training curves</h2>
<div class="charts">{% for svg, text in charts %}{{ chart(svg, text) }}
{% endfor %}</div>
{%- endif %}
{% for run in runs -%}
{% if compared %}<h2 id="run{{ loop.index }}">{{ run.name }}</h2>{% endif %}
{% if not compared %}{{ verdict(run) }}
<h2>Training curves</h2>
{% if not run.rows %}<p>No epoch has ended yet.</p>{% endif -%}
<div class="charts">{% for svg, text in charts %}{{ chart(svg, text) }}
{% endfor %}</div>
{% else %}{{ verdict(run) }}{% endif %}
{% if run.note %}<p class="soft">{{ run.note }}</p>{% endif %}
{% if run.views -%}
<h3>Views</h3>
<p class="soft">The first column shows images of the training set, the others random views of them: what the loss
pulls together.</p>
<img class="views" src="{{ run.views }}" alt="Images of the training set, each followed by random views of it">
{%- endif %}
{% if run.neighbours -%}
<h3>Nearest neighbours</h3>
<p class="soft">An image of {{ run.shown_split }}, then the images of {{ run.train_split }} that are nearest to it by
the encoder, and below by raw pixels.{% if run.labelled %} Solid frame: of the same class; dashed: of another.{% endif %}</p>
{% for each in run.neighbours %}<div class="row">
<div class="thumbs"><img src="{{ each.query.url }}" alt="{{ each.query.text }}"> <span>{{ each.query.text }}</span></div>
<div class="both"><div><span class="soft">encoder</span>{{ thumbs(each.encoder) }}</div>
<div><span class="soft">raw pixels</span>{{ thumbs(each.pixels) }}</div></div></div>
{% endfor %}
{%- endif %}
{% if run.map -%}
<h3>Map</h3>
<p class="soft">{{ run.map.method }} of h for {{ run.map.points|length }} images of {{ run.shown_split }}: near each
other means similar to the encoder.{% if run.map.method == "t-SNE" %} Distances between groups mean
nothing.{% endif %} Point at a dot to see its image.</p>
<figure class="map" data-columns="{{ run.map.columns }}" data-rows="{{ run.map.rows }}">
<svg viewBox="-2 -2 104 104" role="img" aria-label="{{ run.map.text }}">
{% for point in run.map.points %}<circle cx="{{ point.x }}" cy="{{ point.y }}" r="1" fill="{{ point.color }}" data-i="{{ loop.index0 }}"><title>{{ point.text }}</title></circle>
{% endfor %}</svg>
<ul class="legend">{% for name, color in run.map.legend %}<li><span style="background: {{ color }}"></span> {{ name }}</li>{% endfor %}</ul>
<details><summary>All images of the map</summary>
<img class="sprite" src="{{ run.map.sprite }}" alt="The images of the map in a grid, in the order of the split">
</details></figure>
{%- endif %}
{% if run.similarity -%}
<h3>Similarities</h3>
<p class="soft">{{ run.similarity.line }}</p>
<div class="one">{{ chart(run.similarity.svg, run.similarity.line) }}</div>
{%- endif %}
{% if run.classes -%}
<h3>Classes</h3>
<p class="soft">Fraction of the {{ run.num_shown }} images of {{ run.shown_split }} whose class is predicted correctly by
{{ run.predictor }}; the weakest classes first.</p>
<div class="scroll"><table class="numbers">
{% for name, percent, counts in run.classes %}<tr><td>{{ name }}</td><td>{{ percent }} %</td><td>{{ counts }}</td>
<td><span class="bar" aria-hidden="true"><span style="width: {{ percent }}%"></span></span></td></tr>
{% endfor %}</table></div>
{% if run.confusions %}<p>Most frequent confusions: {{ run.confusions }}.</p>{% endif %}
{%- endif %}
{% if run.duplicates -%}
<h3>Likely duplicates</h3>
<p class="soft">Pairs of images of {{ run.train_split }} that are nearly the same, among the {{ run.num_train }} that were
looked at.</p>
<div class="thumbs">{% for pair in run.duplicates %}{{ thumbs(pair) }}{% endfor %}</div>
{%- endif %}
{% if run.outliers -%}
<h3>Outliers</h3>
<p class="soft">Images of {{ run.train_split }} that are least like their nearest neighbours; damaged images and images of
other things are often among them.</p>
{{ thumbs(run.outliers) }}
{%- endif %}
<h3>How it was made</h3>
<p>Run again with <code>simclr-tf {{ run.command }} --flagfile={{ run.flagfile }}</code></p>
{% if run.environment %}<details><summary>Environment</summary><div class="scroll"><table class="flags">
{% for name, value in run.environment %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}</table></div></details>{% endif %}
<details><summary>Flags</summary><div class="scroll"><table class="flags">
{% for flag, value in run.flags.items() %}<tr><td>--{{ flag }}</td><td>{{ value }}</td></tr>
{% endfor %}</table></div></details>
{% if run.rows %}<details{% if run.rows|length <= 30 and not compared %} open{% endif %}><summary>Metrics of {{ run.rows|length }} epoch{{ '' if run.rows|length == 1 else 's' }}</summary>
<div class="scroll"><table class="numbers metrics">
<tr>{% for key in run.columns %}<th>{{ key.replace("_", " ") }}</th>{% endfor %}</tr>
{% for row in run.rows %}<tr>{% for key in run.columns %}<td>{{ row[key]|number if key in row }}</td>{% endfor %}</tr>
{% endfor %}</table></div></details>{% endif %}
{% endfor %}
<script>{{ script|safe }}</script>
</body>
</html>
"""
