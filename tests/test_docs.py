"""The written pages: links and paths exist, tables are those of the records, the site builds strictly."""

import ast
import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import urllib.parse

import pytest

from s1jax import config
from s1jax.cli.__main__ import COMMANDS
from s1jax.config.sampling import SamplingParams
from tests import test_imports

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.md")])
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
MACHINES = ("intel_xeon", "amd_epyc", "amd_epyc_family_25_model_17")


def _prose(text):
    """A page without its blocks of code."""
    return re.sub(r"(?ms)^```.*?^```", "", text)


def _anchors(page):
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"(?m)^#+ (.*)", _prose(page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip().replace(" ", "-") for heading in headings}


def _cells(name, first):
    """The cells of the rows of a page whose first cell is `first`."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if line.startswith(f"| {first} |")]
    return [[cell.strip() for cell in line.strip("|").split("|")][1:] for line in lines]


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files_and_headings(name):
    page = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", _prose(page.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = urllib.parse.unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name} links to {link}, which does not exist"
        assert not anchor or anchor in _anchors(target), f"{name} links to {link}; that page has no such heading"


@pytest.mark.parametrize("name", NAMES)
def test_files_that_a_page_names_exist(name):
    """All but those of earlier releases and of what was decided against."""
    rooms = "s1jax|tests|configs|launch|benchmarks|examples|docs"
    named = set(re.findall(rf"(?<![\w/])((?:{rooms})/[\w./-]*\w/?)(?![\w*])", (ROOT / name).read_text()))
    named -= {path for path in named if re.search(r"NAME|PROCESSOR|NN-title", path)}
    missing = [path for path in sorted(named) if not (ROOT / path).exists()]
    assert name in ("CHANGELOG.md", "docs/decisions/04-public-names.md") or not missing


@pytest.mark.parametrize("name", NAMES)
def test_what_is_installed_by_hand_goes_into_the_environment(name):
    """A bare `pip` may belong to another Python."""
    assert not re.search(r"(?<!-m )pip install", (ROOT / name).read_text())


@pytest.mark.parametrize("name", ["README.md", "WORKSPACE.md"])
def test_the_first_pages_stay_short(name):
    assert len((ROOT / name).read_text().splitlines()) <= 150


@pytest.mark.parametrize("name", ["WORKSPACE.md", "docs/architecture.md"])
def test_the_import_order_is_that_of_the_tests(name):
    order = " -> ".join(", ".join(floor) for floor in test_imports.FLOORS)
    assert order in (ROOT / name).read_text()


def test_all_rooms_and_decisions_are_listed():
    architecture = (ROOT / "docs" / "architecture.md").read_text()
    assert not [room for room in test_imports.FLOOR if f"`s1jax/{room}" not in architecture]
    decisions = {page.name for page in (ROOT / "docs" / "decisions").glob("[0-9]*.md")}
    assert decisions == set(
        re.findall(r"\((\d\d-[\w-]+\.md)\)", (ROOT / "docs" / "decisions" / "index.md").read_text())
    )


def test_the_readme_begins_with_the_two_commands():
    first = re.search(r"(?ms)^```bash\n(.*?)^```", (ROOT / "README.md").read_text())[1]
    commands = [line.partition("#")[0].strip() for line in first.splitlines()]
    assert commands == ["bash launch/quickstart.sh", "bash launch/test.sh"]


@pytest.mark.parametrize(("name", "count"), [("README.md", 5), ("docs/quickstart.md", 10)])
def test_the_quickstarts_table_is_its_record(name, count):
    runs = {run["name"]: run for run in json.loads((RESULTS / "quickstart.json").read_text())["runs"]}
    found = {run: cells for run in runs for cells in _cells(name, run) if len(cells) == 3}
    assert len(found) == count
    for run, cells in found.items():
        accuracy = f"{runs[run]['accuracy']:.1f} ± {runs[run]['error']:.1f}"
        assert cells == [accuracy, f"{runs[run]['thinking_tokens']:.1f}", f"{runs[run]['cut']:.0f}"]


def test_the_table_over_seeds_is_its_record():
    runs = json.loads((RESULTS / "countdown_figures.json").read_text())["over_runs"]
    found = {run: cells[0] for run in runs for cells in _cells("docs/quickstart.md", run) if len(cells) == 1}
    assert len(found) == 7
    for run, cell in found.items():
        shown = [float(number) for number in cell.split(" ± ")]
        assert shown == pytest.approx([*runs[run]["accuracy"].values()], abs=0.0501)


@pytest.mark.parametrize(
    ("row", "run"),
    [
        ("eight waits", "Wait x8"),
        ("two waits, majority of 4 samples", "Wait x2, majority of 4 at 1"),
        ("majority of 16 samples at temperature 1", "majority of 16 at 1"),
        ("rejected until thinking has at most 32 tokens", "rejected above 32, 16 tries at 1"),
    ],
)
def test_the_table_of_controls_is_its_record(row, run):
    runs = {run["name"]: run for run in json.loads((RESULTS / "controls.json").read_text())["runs"]}
    ((accuracy, tokens),) = _cells("docs/evaluation.md", row)
    assert accuracy == f"{runs[run]['accuracy']:.1f} ± {runs[run]['error']:.1f}"
    # Of rejected samples the tokens that count say nothing of the cost.
    assert tokens == ("" if "rejected" in row else f"{runs[run]['thinking_tokens']:.0f}")


SPEEDS = {
    "train step, 4 x 512 tokens": ("train_step", None),
    "greedy decoding, 1 sequence": ("decode", "1x128x256"),
    "greedy decoding, 1 sequence, 128 + 256 tokens": ("decode", "1x128x256"),
    "greedy decoding, 16 sequences, 128 + 128 tokens": ("decode", "16x128x128"),
    "64 prompts of mixed length with mixed budgets, 16 batch slots": ("sampling_mixed", None),
    "one sequence of 1,967 tokens with four waits": ("sampling_waits", None),
}


@pytest.mark.parametrize("row", SPEEDS)
def test_the_tables_of_speeds_are_the_records(row):
    benchmark, part = SPEEDS[row]
    found = []
    for machine in MACHINES:
        record = json.loads((RESULTS / machine / f"{benchmark}.json").read_text())
        medians = record[part] if part else record
        peers = [medians.get(f"times_faster_than_{peer}") for peer in ("transformers", "tunix")]
        found.append(["" if peer is None else f"{peer['median']:.2f} x" for peer in peers])
    rows = {name: _cells(name, row) for name in ("README.md", "docs/benchmarks.md")}
    assert any(rows.values())
    for cells in rows["README.md"]:
        assert cells == [transformers for transformers, _ in found]
    for cells in rows["docs/benchmarks.md"]:
        assert [cell.partition(" (")[0] for cell in cells] == [cell for pair in found for cell in pair]


def test_the_table_of_hand_offs_is_its_record():
    record = json.loads((RESULTS / "handoff.json").read_text())["over_seeds"]
    page = (ROOT / "docs/handoff.md").read_text()
    for local in ("cut at 32", "no limit", "Wait x1", "Wait x2", "Wait x4"):
        found = record[f"{local}, remote Wait x8"]
        cells = [f"{found['local_accuracy']['mean']:.1f}"]
        for score in ("mean", "fit"):
            figures = found[score]
            cells += [f"{figures[name]['mean']:.3f}" for name in ("auroc", "apgr")]
            cells.append(f"{figures['above_random_at_half']['mean']:.1f}")
        assert f"| {local} | {' | '.join(cells)} | {found['oracle_apgr']['mean']:.3f} |" in page


def test_the_table_of_domains_is_its_record():
    record = json.loads((RESULTS / "domains.json").read_text())
    page = (ROOT / "docs/measuring.md").read_text()
    assert f"({record['questions']} questions" in page and f"\n{record['subjects']} subjects:" in page
    for name, row in (
        ("words", "words: `--encoder=words`"),
        ("hidden_states", "hidden states"),
        ("standardised", "hidden states, standardised: `--encoder=CKPT`"),
    ):
        assert f"| {row} | {record[name]['nearest']} | {record[name]['clusters_57']['agreement']:.3f} |" in page
    assert f"at random have {record['chance']['clusters_57']['agreement']:.3f}." in page


def _flags():
    """The names of all flags that commands define; `s1jax sample` has those of the sampling parameters."""
    found = {"config", *(field.name for field in dataclasses.fields(SamplingParams))}
    for path in (ROOT / "s1jax" / "cli").glob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        named = [call for call in calls if getattr(call.func, "attr", "").startswith("DEFINE_") and call.args]
        found |= {call.args[0].value for call in named if isinstance(call.args[0], ast.Constant)}
    return found


@pytest.mark.parametrize("name", [name for name in NAMES if name == "README.md" or re.fullmatch(r"docs/\w+\.md", name)])
def test_commands_on_the_pages_have_flags_and_settings_that_exist(name):
    """So that what a reader copies is not refused; `$FLAGS` stands for flags of a line before."""
    flags, settings = _flags(), config.defaults()
    for block in re.findall(r"(?ms)^```bash\n(.*?)^```", (ROOT / name).read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.match(r"(?:\w+=\S+ )*(?:s1jax|python -m launch\.)\s?(\w+)", line)
            if found is None or found[1] == "lm_eval":
                continue
            assert found[1] in COMMANDS, line
            plain = re.sub(r"\"[^\"]*\"|'[^']*'", "", line).partition(" #")[0]
            for flag in re.findall(r"\s--([\w.]+)", plain):
                if flag.startswith("config."):
                    at = settings
                    for part in flag.split(".")[1:]:
                        assert part in at, f"{name}: --{flag} is not a setting"
                        at = at[part]
                else:
                    # A boolean's name may have `no` in front.
                    assert {flag, flag.removeprefix("no")} & flags, f"{name}: --{flag}: {line}"


def test_the_readme_names_each_extra():
    nodes = [*ast.walk(ast.parse((ROOT / "setup.py").read_text()))]
    dicts = [node.value for node in nodes if isinstance(node, ast.Assign) and node.targets[0].id == "FEATURES"]
    dicts += [node.value for node in nodes if isinstance(node, ast.keyword) and node.arg == "extras_require"]
    extras = {key.value for found in dicts for key in found.keys if key} - {"docs", "test", "parity"}
    assert len(dicts) == 2 and "beam" in extras
    assert not [extra for extra in extras if f"`{extra}`" not in (ROOT / "README.md").read_text()]


def test_the_readmes_python_runs(capsys):
    """Ten lines on the model that ships in the package."""
    (code,) = re.findall(r"(?ms)^```python\n(.*?)^```", (ROOT / "README.md").read_text())
    assert len(ast.parse(code).body) <= 10
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out.strip()


def test_the_site_builds_strictly(tmp_path):
    """Every page is in the navigation, every link and anchor leads somewhere, every docstring can be rendered."""
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("mkdocstrings") is None:
        pytest.skip("mkdocs is not installed (python -m pip install -e .[docs]); the links above are checked")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", f"--site-dir={tmp_path}"],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "api" / "sampling" / "index.html").exists()


def test_the_table_of_a_teachers_memory_is_its_record():
    record = json.loads((RESULTS / "distil_memory.json").read_text())
    page = (ROOT / "docs" / "logit_distillation.md").read_text()
    rows = {
        "cross-entropy, no teacher" if name == "cross_entropy" else f"`{name}`": n
        for name, n in record["peak_bytes"].items()
    }
    for name, size in rows.items():
        assert f"| {name} | {size / 1e9:.2f} GB |" in page, name
    assert f"shard is {record['teacher_shard_bytes'] / 1e9:.2f} GB" in page
    assert f"stored targets (64 ids), the peak is {record['stored_targets_peak_bytes'] / 1e9:.2f} GB" in page
    assert max(rows.values()) <= record["allowed_bytes"]


def test_the_table_of_stored_targets_is_its_record():
    record = json.loads((RESULTS / "teacher_targets.json").read_text())
    page = (ROOT / "docs" / "logit_distillation.md").read_text()
    for case in record["cases"]:
        ids = f"{case['ids']:.1f}".removesuffix(".0")
        rest = f"{case['rest']:.4f}" if case["kind"] == "top_k" else "0"
        assert f"| `{case['kind']}`, {case['size']} | {case['bytes']:.1f} | {ids} | {rest} |" in page
        assert f"{record['rows']} rows of Countdown,\n{case['positions']:,} positions" in page


def test_the_table_of_leaks_is_its_record():
    record = json.loads((RESULTS / "curation_leaks.json").read_text())
    page = (ROOT / "docs" / "curation_rules.md").read_text()
    names = {
        "s1": "`S1`",
        "letters, 8": "letters and digits, 8 words",
        "letters, 13": "letters and digits, 13 words",
        "number_blind, 13": "the same, number-blind, 13 words",
        "Light-R1": "`LIGHT_R1`",
        "ours": "`OURS`",
    }
    for name, found in record["rules"].items():
        shares = [f"{part['dropped']:.1%}".replace("%", " %") for part in found["leaks"].values()]
        assert f"| {' | '.join([names[name], *shares, str(found['train_rows_dropped'])])} |" in page
    assert record["false_positives"] == 0
    assert all(one["read"] == "variant" for one in record["hits"])


def test_hashes_of_ngrams_are_as_recorded():
    record = json.loads((RESULTS / "curation_ngrams.json").read_text())
    assert (record["ngrams"], record["indexed"], record["clean_rows_dropped"]) == (10_000_000, 1_000_000, 0)
    page = " ".join((ROOT / "docs" / "decisions" / "21-data.md").read_text().split())
    assert f"32 bits dropped {record['with_32_bits']:,} of {record['rows']:,} clean rows in a million runs" in page


def test_the_curation_story_is_its_record():
    record = json.loads((RESULTS / "curation_story.json").read_text())
    page = (ROOT / "docs" / "curation_story.md").read_text()
    for name, arm in record["arms"].items():
        accuracy = f"{arm['accuracy']:.1f} ± {arm['error']:.1f} | {arm['leaked_accuracy']:.1f}"
        cells = f"{arm['students']} | {arm['steps']} | {accuracy} | {arm['thinking_tokens']:.0f} | {arm['cut']:.0f}"
        assert f"| {name} | {cells} |" in page
    for each in record["differences"]:
        assert f"| {each['arm']} against {each['against']} | {each['pairs']} | {each['points']:+.1f} ±" in page
    for name, found in record["defects"].items():
        assert f"| {name} | {found['rows']} | {found['left_before_the_teacher']} | {found['left']} |" in page
    assert f"{record['seconds']:.0f} s" in page
