"""`package:NAME`: the folders that ship in the package."""

import pathlib

import pytest

import s1jax
from s1jax.errors import UserError
from s1jax.io import assets
from s1jax.text.tokenizer import Tokenizer


def test_a_name_stands_for_a_folder_of_the_package():
    folder = pathlib.Path(s1jax.__file__).parent / "assets"
    assert assets.path("package:countdown_tokenizer") == folder / "countdown_tokenizer"
    assert assets.path("some/where") == pathlib.Path("some/where")
    assert Tokenizer.load("package:countdown_tokenizer").files == Tokenizer.load(folder / "countdown_tokenizer").files


@pytest.mark.parametrize("name", ["nothing", "", "..", "countdown_base/tokenizer", "../assets/countdown_base"])
def test_other_names_are_one_sentence(name):
    with pytest.raises(
        UserError, match=r"is not in the package; it has package:countdown_base, .*, package:countdown_t"
    ):
        assets.path(f"package:{name}")
