"""What a file of configs/ imports: `defaults` and the shape of a model. The rooms import the files of this folder."""

from s1jax.config.experiment import defaults as defaults
from s1jax.config.model import ModelConfig as ModelConfig
from s1jax.config.model import RopeScaling as RopeScaling
from s1jax.config.schema import to_dict as to_dict
