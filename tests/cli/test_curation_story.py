"""The curation story in small: what is planted, collected, curated and compared, and one student."""

import json
import random

import pytest
from absl import flags

import s1jax
from s1jax.cli import curation_story as story
from s1jax.cli import story_report, story_runs
from s1jax.curation.verdicts import Correct
from s1jax.data import identity
from s1jax.tasks.countdown import pool, problems

PROBLEMS = 12


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Folder of a story of 60 questions whose teacher gives up after two branches, or is cut."""
    folder = tmp_path_factory.mktemp("story")
    for flag, value in ((story._POOL, 60), (story._SIZE, 6), (story._PROBLEMS, PROBLEMS), (story._SEEDS, 2)):
        flags.FLAGS[flag.name].value = value
    flags.FLAGS.mark_as_parsed()
    planted = story.make_pool(folder)
    rng = random.Random(0)
    measured, answers = [], {}
    for one in planted:
        trace, expression = problems.search_text(one.problem, rng.randrange(5), 2, 0)
        state = rng.choice(["done", "done", "cut"])
        usage = {"prompt_tokens": 7, "completion_tokens": 40}
        name = identity.question_id(one.question)
        answers[name] = {
            "key": name, "id": name, "answer": 0, "state": state, "reasoning": trace, "usage": usage, "dollars": 0.001,
            "content": f"Answer: {expression}", "finish_reason": "stop",
        }  # fmt: skip
        measured.append({**one.row, "pass_rate": 1.0 if one.kind == "easy" else 0.5, "pass_tries": 2})
    for part in ("measured", "answers", "questions"):
        (folder / part).mkdir()
    story.write(folder / "measured" / "rows.jsonl", measured)
    story.write(folder / "answers" / "answers.jsonl", list(answers.values()))
    yield folder
    for flag in (story._POOL, story._SIZE, story._PROBLEMS, story._SEEDS):
        flags.FLAGS[flag.name].unparse()


def flags_of(command):
    return dict(part.removeprefix("--").split("=", 1) for part in command[1:] if "=" in part)


def curate(command):
    asked = flags_of(command)
    return s1jax.curate(
        [asked["rows"]], asked["out"], against=[asked["against"]], preset=asked["preset"], size=int(asked["size"]),
        seed=int(asked.get("seed", 0)), only_right="--only_right" in command,
    )  # fmt: skip


@pytest.fixture(scope="module")
def curated(out):
    curate(story.choose_questions(out))
    collected = story.collect(out)
    s1jax.measure([out / "collected.jsonl"], out / "graded", [Correct("countdown")], on_note=lambda note: None)
    for seed in (None, 0, 1):
        curate(story.choose_rows(out, seed))
    story.draw_rows(out, collected)
    return out


def test_the_planted_defects_are_left_out(curated):
    planted = pool.make(60, problems.problems("test")[:PROBLEMS])
    found = story_report.defects(curated, planted)
    assert sum(kind["rows"] for kind in found.values()) == 60
    for kind, what in found.items():
        assert what["left"] + sum(what["dropped_by"].values()) == what["rows"], kind
    for kind in ("impossible", "easy", "duplicate", *pool.LEAKS):
        assert found[kind]["left"] == 0, kind
    assert found["good"]["left"] > 0 and found["good"]["dropped_by"].keys() <= {"quality", "right"}
    for kind in pool.LEAKS:  # before the teacher is paid
        assert found[kind]["left_before_the_teacher"] == 0 and found[kind]["dropped_by"] == {"decontamination": 1}
    rows = story.read(curated / "curated-0" / "rows.jsonl")
    assert len(rows) == 6 and all(problems.grade(row["attempt"], row) for row in rows)


def test_random_rows_are_of_everything_that_was_paid_for(curated):
    collected = story.read(curated / "collected.jsonl")
    assert len(collected) == 57  # three of the sixty are asked once
    assert {row["finish_reason"] for row in collected} == {"stop", "length"}
    questions = {row["question"] for row in collected}
    for seed in (0, 1):
        drawn = story.read(curated / f"random-{seed}.jsonl")
        assert len(drawn) == 6 and {row["question"] for row in drawn} <= questions
        assert {row["question"] for row in drawn} <= {row["question"] for row in story.read(curated / "scored.jsonl")}
    assert story.read(curated / "random-0.jsonl") != story.read(curated / "random-1.jsonl")
    assert len(story.read(curated / "whole.jsonl")) == 57


def test_the_report_compares_students_of_one_base_and_seed(curated):
    runs = story.students(curated)
    assert len({run.name for run in runs}) == len(runs)
    assert {run.steps for run in runs} == {5, story_report.equal_flops(5)} and story_report.equal_flops(315) == 233
    rng, figures = random.Random(1), {}
    for run in runs:
        right = [int(rng.random() < (0.9 if run.arm == "curated" else 0.2)) for _ in range(PROBLEMS)]
        figures[run.name] = {
            "run": {"arm": run.arm, "base": run.base, "seed": run.seed, "steps": run.steps},
            "right": right, "thinking_tokens": 50.0, "cut": 0.0,
        }  # fmt: skip
    planted = pool.make(60, problems.problems("test")[:PROBLEMS])
    found = story_report.results(curated, planted, figures, "0.55,2.19")
    leaks = sum(one.kind in pool.LEAKS for one in planted)
    assert found["evaluation"] == {"problems": PROBLEMS, "fresh": PROBLEMS - leaks, "leaked": leaks}
    one = next(one for one in found["differences"] if (one["arm"], one["against"]) == ("curated", "random"))
    known = {one.of for one in planted if one.kind in pool.LEAKS}
    fresh = [i for i, p in enumerate(problems.problems("test")[:PROBLEMS]) if p.question not in known]
    points = []
    for seed in (0, 1):
        a, b = (figures[f"{arm}-countdown_base_quarter-{seed}"]["right"] for arm in ("curated", "random"))
        points.append(100 * sum(a[i] - b[i] for i in fresh) / len(fresh))
    assert one["pairs"] == 2 and one["points"] == pytest.approx(sum(points) / 2, abs=0.01)
    assert one["error"] >= abs(points[0] - points[1]) / 2 - 0.01  # that over two students, at least
    assert found["teacher"]["whole_pool"]["answers"] == 57
    assert found["teacher"]["whole_pool"]["dollars"] == pytest.approx(0.057)
    text = story_report.text(found)
    assert "| curated against random | 2 | " in text and json.dumps(found)
    assert story_report.draw(found, curated / "story.png") and (curated / "story.png").stat().st_size > 1000


def test_a_student_is_trained_and_evaluated_once(curated, monkeypatch):
    run = story_runs.Run("random", 0, story.BASES[0], f"{curated}/random-0.jsonl", 1)
    figures = story_runs._run(run, curated / "students", 2)
    assert len(figures["right"]) == 2 and figures["trained_tokens"] > 0
    assert story_runs.figures(run, curated / "students") == figures
    done = []
    story_runs.make([run], curated / "students", 2, 1, lambda *found: done.append(found))  # starts no process
    assert done == [(run, figures)]
    config = story_runs.settings(story_runs.Run("x", 3, "package:countdown_base", "rows.jsonl", 7, "targets"))
    assert (config["data"]["seed"], config["train"]["steps"], config["distil"]["targets"]) == (3, 7, "targets")
