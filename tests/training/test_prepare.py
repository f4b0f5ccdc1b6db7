"""What a run is made of: the metadata of its checkpoints."""

import pytest

from s1jax import config
from s1jax.config import presets
from s1jax.errors import UserError
from s1jax.training import prepare


def test_delimiters_of_the_config_end_up_in_the_checkpoint_s_format():
    def metadata(end):
        own = dict(init_from="package:countdown_base", chat="countdown")
        delimiters = dict(think_start="try so", think_end=end)
        return prepare.make_metadata(presets.experiment(config.defaults() | own | {"delimiters": delimiters}))

    about = metadata("check answer")
    assert about.chat.think_start == "try so" and about.chat.think_end == "check answer"
    assert about.provenance["experiment"]["data"]["control"] == ""
    with pytest.raises(UserError, match=r"config\.delimiters: think_end '\\ncheck' begins with white"):
        metadata("\ncheck")
