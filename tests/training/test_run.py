"""`s1jax.train` from a script: nested settings in, a checkpoint and figures out, nothing printed."""

import pathlib

import pytest

import s1jax
from s1jax.checkpoint import store
from s1jax.errors import UserError

SHAPE = dict(vocab_size=128, d_model=8, mlp_dim=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8)
SETTINGS = {
    "model": SHAPE,
    "tokenizer": str(pathlib.Path(s1jax.__file__).parent / "assets" / "countdown_tokenizer"),
    "chat": "countdown",
    "data": {"source": "countdown", "num_rows": 8, "block_size": 192},
    "train": {"batch_size": 8, "epochs": 1, "compute_dtype": "float32", "remat": "none"},
    "checkpoint": {"every": 1},
    "seed": 1,
}


def test_a_script_trains_and_goes_on(tmp_path, capsys):
    import s1jax.training.loop  # which must not take the function's place

    told: list = []
    callbacks = s1jax.Callbacks(
        on_note=lambda sentence: told.append("note"),
        on_start=lambda start, num_steps: told.append((start, num_steps)),
        on_step=lambda record: told.append(record["step"]),
        on_checkpoint=lambda step, folder: told.append(folder.relative_to(tmp_path).as_posix()),
    )
    summary = s1jax.train(SETTINGS, tmp_path / "w", callbacks)
    assert told == [(0, 1), 1, "w/checkpoints/1"]
    assert summary["steps"] == 1 and not summary["stopped"] and summary["last_loss"] > 0
    assert s1jax.load_model(tmp_path / "w").config.num_layers == 1
    longer = SETTINGS | {"train": SETTINGS["train"] | {"epochs": 2}}
    assert s1jax.train(longer, str(tmp_path / "w"), callbacks)["steps"] == 2
    assert told[3:5] == [(1, 2), "note"], "it resumes, and says that the schedule changed"
    assert store.finished_steps(tmp_path / "w") == [1, 2]
    assert capsys.readouterr() == ("", "")


def test_wrong_settings_leave_no_folder(tmp_path):
    for settings, sentence in (
        (SETTINGS | {"trian": {}}, r"config\.trian is not a setting"),
        (SETTINGS | {"chat": "think"}, r"config\.chat: delimiter '<think>' is not in the tokenizer"),
        (SETTINGS | {"data": {"source": "none.jsonl"}}, r"data\.source none\.jsonl does not exist"),
        (SETTINGS | {"init_from": "gs://bucket/x", "model": None, "tokenizer": ""}, r"config\.init_from=gs://b.* URL"),
    ):
        with pytest.raises(UserError, match=sentence):
            s1jax.train(settings, tmp_path / "w")
    assert not (tmp_path / "w").exists()
