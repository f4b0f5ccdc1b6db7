"""The benchmark of curation in small: what is planted is what is dropped, and no clean n-gram meets the index."""

from benchmarks import curation


def test_planted_defects_are_dropped_and_clean_rows_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(curation, "EVALUATED", 400)
    curation.write(tmp_path, rows=800, characters=1500, shards=2)
    found = curation.all_rules(tmp_path, shards=2, workers=1)
    assert found["rows"] == 800
    assert found["planted_and_dropped"] == dict.fromkeys(curation.PLANTED, 1.0)
    assert found["clean_rows_dropped"] == {}


def test_clean_ngrams_meet_the_index_nowhere():
    found = curation.clean_ngrams(total=100_000, indexed=10_000)
    assert found["rows"] == 1000
    assert found["indexed"] == 10_000
    assert found["clean_rows_dropped"] == 0
