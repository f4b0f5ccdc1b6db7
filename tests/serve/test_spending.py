"""The caps of hand-offs: never passed, whoever asks at the same time, and remembered by the next process."""

import json
import threading

import pytest

from s1jax.errors import UserError
from s1jax.serve.spending import Caps, Hold, Spending

DAY = 86_400.0


class Clock:
    def __init__(self, now=20_000 * DAY + 5):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_the_worst_case_is_reserved_and_replaced_by_the_cost(tmp_path, clock):
    spending = Spending(Caps(1.0, 2.0), tmp_path / "audit", clock)
    first = spending.reserve(1.0, "a", {"sha256": "f00d"})
    second = spending.reserve(1.0, "b", {})
    assert isinstance(first, Hold) and isinstance(second, Hold) and spending.today() == 2
    assert spending.reserve(0.01, "c", {}) == "cap_day"
    spending.settle(first, 0.25, {"end": "answered"})
    assert spending.today() == 1.25 and spending.today("a") == 0.25
    assert isinstance(spending.reserve(0.75, "c", {}), Hold)
    lines = [json.loads(line) for line in (tmp_path / "audit").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["sent", "sent", "done", "sent"]
    assert lines[0]["reserved_usd"] == 1 and lines[0]["sha256"] == "f00d" and lines[2]["usd"] == 0.25
    assert lines[2]["id"] == first.id and lines[0]["time"].startswith("2024-10-04T00:00:05")


def test_each_cap_is_named(tmp_path, clock):
    spending = Spending(Caps(1.0, 10.0, 1.5), tmp_path / "audit", clock)
    assert spending.reserve(1.01, "a", {}) == "cap_request"
    assert spending.reserve(float("nan"), "a", {}) == "cap_request"
    assert isinstance(spending.reserve(1.0, "a", {}), Hold)
    assert spending.reserve(0.6, "a", {}) == "cap_key" and isinstance(spending.reserve(0.6, "b", {}), Hold)


def test_threads_together_never_pass_the_cap(tmp_path):
    spending = Spending(Caps(0.5, 10.0), tmp_path / "audit")
    most, holds, lock = [], [], threading.Lock()

    def work(number):
        for i in range(60):
            hold = spending.reserve(0.07 + 0.01 * (i % 5), str(number), {})
            with lock:
                most.append(spending.today())
            if isinstance(hold, Hold):
                spending.settle(hold, hold.usd * (i % 3) / 2, {})
                holds.append(hold)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) <= 10 + 1e-9 and 0 < len(holds) < 480
    lines = [json.loads(line) for line in (tmp_path / "audit").read_text().splitlines()]
    assert sum(line["usd"] for line in lines if line["event"] == "done") == pytest.approx(spending.today())


def test_a_new_process_remembers_the_day_and_what_was_never_settled(tmp_path, clock):
    spending = Spending(Caps(1.0, 2.0, 1.0), tmp_path / "audit", clock)
    spending.settle(spending.reserve(1.0, "a", {}), 0.25, {})
    spending.reserve(0.5, "b", {})  # the process is killed before the answer
    spending.close()
    with open(tmp_path / "audit", "a") as file:
        file.write('{"event": "se')
    again = Spending(Caps(1.0, 2.0, 1.0), tmp_path / "audit", clock)
    assert (again.today(), again.today("a"), again.today("b")) == (0.75, 0.25, 0.5)
    assert again.reserve(0.9, "a", {}) == "cap_key"
    assert isinstance(again.reserve(0.5, "a", {}), Hold)
    again.close()
    assert Spending(Caps(1.0, 2.0), tmp_path / "audit", clock).today() == 1.25


def test_a_new_day_has_its_own_money(tmp_path, clock):
    spending = Spending(Caps(1.0, 1.0), tmp_path / "audit", clock)
    late = spending.reserve(1.0, "a", {})
    clock.now += DAY
    assert spending.today() == 0
    early = spending.reserve(1.0, "a", {})
    spending.settle(late, 0.1, {})  # of yesterday
    assert spending.today() == 1 and isinstance(early, Hold)
    clock.now -= DAY  # a clock that is set back gives no second budget
    assert spending.reserve(0.5, "a", {}) == "cap_day"


def test_a_cost_above_the_worst_case_ends_all_spending(tmp_path, clock):
    spending = Spending(Caps(1.0, 9.0), tmp_path / "audit", clock)
    spending.settle(spending.reserve(0.1, "a", {}), 0.3, {})
    assert spending.today() == 0.3 and "0.3 USD where at most 0.1" in spending.overrun
    assert spending.reserve(0.1, "a", {}) == "overrun"


def test_an_audit_file_has_one_owner_and_is_one(tmp_path, clock):
    first = Spending(Caps(1.0, 2.0), tmp_path / "audit", clock)
    with pytest.raises(UserError, match="another server writes"):
        Spending(Caps(1.0, 2.0), tmp_path / "audit", clock)
    first.close()
    (tmp_path / "notes").write_text("my notes\nmore\n")
    with pytest.raises(UserError, match="not an audit file"):
        Spending(Caps(1.0, 2.0), tmp_path / "notes", clock)
    (tmp_path / "link").symlink_to(tmp_path / "notes")
    with pytest.raises(UserError, match="is a link"):
        Spending(Caps(1.0, 2.0), tmp_path / "link", clock)
    with pytest.raises(UserError, match="No such file"):
        Spending(Caps(1.0, 2.0), tmp_path / "none" / "audit", clock)
    assert (tmp_path / "notes").read_text() == "my notes\nmore\n"
