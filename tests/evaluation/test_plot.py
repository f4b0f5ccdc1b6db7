"""The plot: a picture of some size, whose curves, points and words can be read."""

import pytest

from s1jax.errors import UserError
from s1jax.evaluation import plot
from tests.evaluation.test_metrics import run


def save_plot(runs, path, title, wait="Wait"):
    plot.save(plot.draw([plot.Evaluation(runs, wait)], title), path)


@pytest.mark.parametrize("count", [1, 2, 10])
@pytest.mark.parametrize("accuracy", [0.0, 40.0])
def test_the_plot_is_a_picture_of_some_size(tmp_path, count, accuracy):
    names = [("budgets",), ("budgets", "waits"), ("waits",), ("majority",), ("token-conditional",)]
    runs = [
        run(20 * i, accuracy + i if accuracy else 0.0, families=names[i % 5], parallel=i % 5 == 3) for i in range(count)
    ]
    save_plot(runs, tmp_path / "scaling.png", "a model on a task, 100 problems", wait="Wait")
    picture = (tmp_path / "scaling.png").read_bytes()
    width, height = (int.from_bytes(picture[i : i + 4]) for i in (16, 20))
    assert picture.startswith(b"\x89PNG") and width > 1000 and height > 600


@pytest.mark.parametrize("accuracy", [0.0, 100.0])
def test_points_at_the_edges_are_drawn_whole(tmp_path, monkeypatch, accuracy):
    """Half a marker of 6 points at 0 % was outside the axes."""
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    save_plot([run(5, accuracy), run(9, accuracy)], tmp_path / "scaling.png", "a model on a task, 100 problems")
    figures[0].draw_without_rendering()
    (axes,) = figures[0].axes
    low, point, high = (axes.transData.transform((5, y))[1] for y in (axes.get_ylim()[0], accuracy, axes.get_ylim()[1]))
    radius = 6 / 2 * figures[0].dpi / 72
    assert low + radius <= point <= high - radius


def test_curves_can_be_told_apart(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: figures.append(figure))
    runs = [run(20 * i, i, families=(f"family {i}",), parallel=True) for i in range(20)]
    save_plot(runs, tmp_path / "scaling.png", "a model on a task, 100 problems")
    (axes,) = figures[0].axes
    lines = [curve.lines[0] for curve in axes.containers]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == len(runs)
    legend = axes.get_legend()
    width = lines[0].get_linewidth()
    assert {line.get_linestyle() for line in lines} == {"--"}
    # A dash and its gap are 3.7 and 1.6 widths of the line, and the marker covers one of them.
    assert legend.handlelength * 9.5 > 3 * (3.7 + 1.6) * width


def test_dollars_are_no_formula_for_the_plot(tmp_path):
    """Between two of them matplotlib would read mathematics, and raise where it makes no sense."""
    dear = run(5, 50, families=('waits with "$_$"',), label="$_$")
    save_plot([dear], tmp_path / "scaling.png", "cost $5_ vs $_10, 1 problems", wait="$^$")
    assert (tmp_path / "scaling.png").stat().st_size


def test_an_svg_is_the_same_for_the_same_runs(tmp_path):
    figure = plot.draw([plot.Evaluation([run(5, 50), run(9, 60)])], "a model on a task, 100 problems")
    for name in ("a.svg", "b.SVG"):
        plot.save(figure, tmp_path / name)
    text = (tmp_path / "a.svg").read_text()
    assert text.startswith("<?xml") and "<svg" in text and text == (tmp_path / "b.SVG").read_text()
    with pytest.raises(UserError, match=r"c\.jpg: a picture is written as \.png, \.svg, \.pdf"):
        plot.save(figure, tmp_path / "c.jpg")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.svg", "b.SVG"]


@pytest.mark.parametrize(
    ("tokens", "scale"),
    [
        ([0, 16, 37, 228], "linear"),  # the quickstart's
        ([5], "linear"),
        ([0, 0.5], "linear"),
        ([100, 2999], "linear"),
        ([100, 3000], "log"),
        ([512, 1024, 16384], "log"),
        ([0, 200, 400, 8000], "symlog"),  # a budget of 0 keeps its place
        ([0.4, 2, 60], "symlog"),
    ],
)
def test_the_axis_is_logarithmic_where_budgets_span_decades(tokens, scale):
    figure = plot.draw([plot.Evaluation([run(count, 10 + i) for i, count in enumerate(tokens)])], "title")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert axes.get_xscale() == scale and plot.is_logarithmic(tokens) == (scale != "linear")
    left, right = axes.get_xlim()
    assert left < min(tokens) and max(tokens) < right
    if scale != "linear":
        shown = [label.get_text() for label in axes.get_xticklabels()]
        assert 4 <= len(shown) <= 12 and ("0" in shown) == (min(tokens) < 1)
        assert all(text.replace(",", "").isdigit() for text in shown)


def test_several_evaluations_on_one_picture():
    """Each has its own colour, each family its own marker, and the legend names both."""
    first = [run(5, 10), run(9, 20, families=("budgets", "waits")), run(20, 30, families=("waits",))]
    second = [run(6, 15), run(10, 25, families=("majority",), parallel=True), run(12, 25, families=("majority",))]
    given = [plot.Evaluation(first, name="base"), plot.Evaluation(second, "Hmm", "tuned, step 5")]
    (axes,) = plot.draw(given, "two").axes
    lines = {curve.get_label(): curve.lines[0] for curve in axes.containers}
    assert list(lines) == [
        'base: thinking extended with "Wait"', "base: thinking cut at a budget",
        "tuned, step 5: thinking cut at a budget", "tuned, step 5: majority",
    ]  # fmt: skip
    looks = [(line.get_color(), line.get_marker()) for line in lines.values()]
    assert looks[0][0] == looks[1][0] != looks[2][0] == looks[3][0]
    assert looks[1][1] == looks[2][1] and len({marker for _, marker in looks}) == 3
    assert not axes.texts  # labels of two evaluations would cover each other
    with pytest.raises(UserError, match="colours for 8 evaluations, not 9"):
        plot.draw([plot.Evaluation(first)] * 9, "nine")


def test_a_long_legend_covers_no_curve():
    figure = plot.draw([plot.Evaluation([run(20 * i, i, families=(f"family {i}",)) for i in range(20)])], "title")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    legend, plotted = axes.get_legend().get_window_extent(), axes.get_window_extent()
    assert legend.y1 < plotted.y0 and legend.y0 > 0
